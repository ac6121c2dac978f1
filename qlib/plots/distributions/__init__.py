"""Figures of one tensor: counts, levels, errors, channels."""
