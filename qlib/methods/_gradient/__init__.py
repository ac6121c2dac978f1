"""Shared parts of the methods that learn by gradient descent."""
