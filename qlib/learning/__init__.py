"""Calibration, the walk from unit to unit, and the one loop that learns rounding."""
