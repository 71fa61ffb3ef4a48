"""Sparse training: penalties that make channels, or single weights, small before they are removed."""

from fxprune.regularizers.base import Regularizer
from fxprune.regularizers.elements import L1, BatchNormL1
from fxprune.regularizers.groups import GroupLasso, GroupSparsity
from fxprune.regularizers.growing import GrowingRegularization

__all__ = ["L1", "BatchNormL1", "GroupLasso", "GroupSparsity", "GrowingRegularization", "Regularizer"]
