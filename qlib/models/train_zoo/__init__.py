"""Trains the embedded digits networks again: ``python -m qlib.models.train_zoo``."""
