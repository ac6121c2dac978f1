"""Shared parts of the methods that search for scales, ranges or codes."""
