"""The Start page: the strip of predictions and the live try-out."""
