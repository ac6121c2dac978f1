"""Figures that hold runs against each other."""
