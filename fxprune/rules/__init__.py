"""Deprecated names of `fxprune.ops`; they work for one more release."""
