"""The pruners that people know from PyTorch: prepare, step, squash, and convert to a smaller model."""

from fxprune.pruner.reconstruct import rescale_consumers, thinet

__all__ = ["rescale_consumers", "thinet"]
