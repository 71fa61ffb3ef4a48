"""Tests of the findings of an analysis."""
