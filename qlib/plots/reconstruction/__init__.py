"""Figures of what learned rounding changes."""
