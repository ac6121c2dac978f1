"""Test processes side by side take one thread each: more would only wait for each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when PyTorch is first imported
