"""One file = one source of float networks."""
