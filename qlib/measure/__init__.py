"""Honest numbers: accuracy with intervals, errors in decibels, paired tests."""
