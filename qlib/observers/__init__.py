"""One file = one way to choose the range that a grid covers."""
