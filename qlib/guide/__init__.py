"""What the app tells about a run by itself: lessons, findings, and the facts they quote."""
