"""How much quantizing one layer or one unit changes the output: measuring it, and its rows."""
