"""Calibration, the iteration over units, and the optimisation loop that learns rounding."""
