"""Parameters, single weights and running statistics that training leaves as they are.

`freeze` switches gradients off, keeps norm layers in evaluation mode, and protects single elements by hooks of the
optimizer; `unfreeze` undoes it.
"""

from fxprune.sparse.freezing.parameters import FreezeReport, freeze, unfreeze
from fxprune.sparse.freezing.zero_gradients import freeze_zero_gradients

__all__ = [
    "FreezeReport",
    "freeze",
    "freeze_zero_gradients",
    "unfreeze",
]
