"""Parameters, single weights and running statistics that training leaves as they are.

`freeze` switches gradients off, holds norm layers in evaluation mode, and guards single elements by hooks of the
optimizer; `unfreeze` undoes it.
"""

from fxprune.sparse.freezing.parameters import FreezeReport, freeze, unfreeze

__all__ = [
    "FreezeReport",
    "freeze",
    "unfreeze",
]
