"""Accuracy with confidence intervals, errors in decibels, paired tests."""
