"""Files of models, without pickle.

`save` and `load` write and read the weights of a small model with its plan and record. `export` writes a graph that
runs without the model's code, in a format of the table `FORMATS` in `graph_export.py`.
"""

from fxprune.artifacts.graph_export import Exported, export
from fxprune.artifacts.pretrained import from_pretrained
from fxprune.artifacts.weights import load, save

__all__ = [
    "Exported",
    "export",
    "from_pretrained",
    "load",
    "save",
]
