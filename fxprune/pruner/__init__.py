"""The pruners that people know from PyTorch: prepare, step, squash, and convert to a smaller model."""
