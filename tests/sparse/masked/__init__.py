"""Tests of masked layers."""
