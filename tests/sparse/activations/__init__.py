"""Tests of thresholds and statistics of activations."""
