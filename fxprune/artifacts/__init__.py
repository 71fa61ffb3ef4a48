"""Files of models, without pickle.

`save` and `load` write and read a small model's weights with its plan and record; `export` writes a graph that runs
without the model's code, in one of the formats of `FORMATS` in `graph_export.py`.
"""

from fxprune.artifacts.graph_export import Exported, export
from fxprune.artifacts.weights import load, save

__all__ = [
    "Exported",
    "export",
    "load",
    "save",
]
