"""What one layer, or one unit, costs: measuring it, and the rows that come out."""
