"""Figures with one place for each layer: what quantizing it costs."""
