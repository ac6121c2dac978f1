"""Bit allocators: one file is one way to say which layer gets how many bits."""
