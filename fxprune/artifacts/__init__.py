"""What lives on disk: small models without pickle."""

from fxprune.artifacts.weights import load, save

__all__ = ["load", "save"]
