"""The front ends: a model and example inputs become a walk of ATen operations on fake tensors."""
