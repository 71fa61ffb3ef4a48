"""Tests of the rewrite to a smaller model: sizes, norms, attention, recurrent layers."""
