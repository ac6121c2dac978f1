"""One file = one way to put a tensor onto a grid."""
