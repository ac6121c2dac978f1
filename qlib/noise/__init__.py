"""What added noise does to rounding: its closed form, the analysis of a network, and its rows."""
