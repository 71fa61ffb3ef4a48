"""Tests of parameters, bytes and multiply-adds."""
