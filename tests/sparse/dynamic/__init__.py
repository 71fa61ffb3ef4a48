"""Tests of dynamic layers."""
