"""Explanations that the app gives by itself: lessons, findings, and the numbers they quote."""
