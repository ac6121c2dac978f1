"""Figures of what added noise does."""
