"""Measurements that anyone can repeat; each prints and stores what it was made with."""
