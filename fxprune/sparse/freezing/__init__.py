"""Parameters, single weights and running statistics that training leaves as they are."""

from fxprune.sparse.freezing.parameters import FreezeReport, freeze, unfreeze

__all__ = [
    "FreezeReport",
    "freeze",
    "unfreeze",
]
