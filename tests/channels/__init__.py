"""Tests of vectors, their unification, channels and groups."""
