"""The NoisyQuant page."""
