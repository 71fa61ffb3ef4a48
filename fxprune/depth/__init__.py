"""Depth: residual branches that are removed whole."""
