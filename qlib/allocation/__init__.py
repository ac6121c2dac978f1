"""One file = one way to say which layer gets how many bits."""
