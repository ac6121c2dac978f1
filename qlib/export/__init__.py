"""Exports for use outside the app: an offline report, a notebook that remakes a view, summaries."""
