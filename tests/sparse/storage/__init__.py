"""Tests of sparse storage."""
