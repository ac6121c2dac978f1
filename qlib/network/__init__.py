"""The quantizable network: its layers, quantization points, blocks and partial runs."""
