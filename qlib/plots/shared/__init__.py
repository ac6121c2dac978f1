"""What figures of several pages use: theme, places, steps, guesses."""
