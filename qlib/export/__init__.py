"""What leaves the app: an offline report, a notebook that makes a view again."""
