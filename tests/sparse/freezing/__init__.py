"""Tests of freezing."""
