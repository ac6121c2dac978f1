"""Records, integer grids, the arithmetic of rounding, and the registry; imports no other folder."""
