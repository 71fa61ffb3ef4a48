"""What lives on disk: weights with their plan, and portable graphs, without pickle."""

from fxprune.artifacts.portable import Exported, export
from fxprune.artifacts.weights import load, save

__all__ = [
    "Exported",
    "export",
    "load",
    "save",
]
