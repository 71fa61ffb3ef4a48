"""What lives on disk: graphs that run without the model's code."""

from fxprune.artifacts.portable import Exported, export

__all__ = ["Exported", "export"]
