"""Tests of pruning of single weights."""
