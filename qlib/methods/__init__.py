"""One file = one post-training quantization method."""
