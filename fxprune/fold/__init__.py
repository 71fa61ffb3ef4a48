"""Constants that removed channels leave behind, added exactly to the layers that read them."""

from fxprune.fold.constants import Folding, fold
from fxprune.fold.planned import Planned, carry_out, folds, make_plan

__all__ = ["Folding", "Planned", "carry_out", "fold", "folds", "make_plan"]
