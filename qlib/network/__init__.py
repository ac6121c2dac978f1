"""A float network that can quantize itself: its layers, points, blocks, partial runs."""
