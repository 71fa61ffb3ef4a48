"""Tests of plans and their files."""
