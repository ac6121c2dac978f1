"""The Bits page."""
