"""Runs a specification: network, images and method meet only here; out comes a record."""
