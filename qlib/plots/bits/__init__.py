"""Figures of accuracy over bit-widths."""
