"""Eager pruners with the interface of `torch.ao.pruning`: prepare, step, squash, and convert to a smaller model."""

from fxprune.pruner.base import BasePruner
from fxprune.pruner.migrate import masks_of, plain
from fxprune.pruner.outputs import OriginalOutputs, PrunedOutputs
from fxprune.pruner.parametrization import (
    ActivationReconstruction,
    BiasHook,
    PruningParametrization,
    ZeroesParametrization,
)
from fxprune.pruner.pruners import FPGMPruner, L1Pruner, L2Pruner, RandomPruner, SaliencyPruner, ScoredPruner
from fxprune.pruner.reconstruct import rescale_consumers, thinet

__all__ = [
    "ActivationReconstruction",
    "BasePruner",
    "BiasHook",
    "FPGMPruner",
    "L1Pruner",
    "L2Pruner",
    "OriginalOutputs",
    "PrunedOutputs",
    "PruningParametrization",
    "RandomPruner",
    "SaliencyPruner",
    "ScoredPruner",
    "ZeroesParametrization",
    "masks_of",
    "plain",
    "rescale_consumers",
    "thinet",
]
