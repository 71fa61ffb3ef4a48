"""Channels whose weights are gone but that carry a constant: the constant goes into what reads them, exactly."""

from fxprune.fold.constants import Folding, fold
from fxprune.fold.planned import Planned, carry_out, folds, make_plan

__all__ = ["Folding", "Planned", "carry_out", "fold", "folds", "make_plan"]
