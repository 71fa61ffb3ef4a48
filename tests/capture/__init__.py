"""Tests of captured models: exported graphs, lists of tensors, state of the process."""
