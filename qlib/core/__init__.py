"""The ground: plain records, integer grids, the arithmetic of rounding, the registry."""
