"""One file = one figure: from a record to numbers, and from numbers to a figure."""
