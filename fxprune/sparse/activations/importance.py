"""Activation statistics as an importance: which channels of a group to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fxprune.analysis.findings import Group
from fxprune.criteria.activation import scores_by_layer
from fxprune.errors import PlanError, nearest
from fxprune.sparse.activations.statistics import ActivationStatistics


def importance_from(
    statistics: ActivationStatistics, kind: str = "apoz", *, layers: Mapping[str, str] | None = None
) -> Callable[[Group], Tensor]:
    """An importance for `fxprune.transform` and `plan`: channels that are seldom zero, or large, stay.

    "apoz": score[c] = 1 - zeros[c] (Hu et al. 2016); "mean": score[c] = mean_abs[c]. Of a group, the layers whose
    outputs open it count, by their mean; see `fxprune.criteria.activation.scores_by_layer`.

    layers: layer -> the name under which its statistics stand, for models that cannot be traced, where an activation
        module was recorded under its own name: {"block.fc1": "block.act"}.

    Raises `PlanError`: here for an unknown kind or name; when the importance is called for a group without
    statistics, and for one in which nothing is ever zero, so that "apoz" says nothing.

    >>> import fxprune, torch
    >>> from torch import nn
    >>> from fxprune.sparse.activations.statistics import activation_statistics
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = activation_statistics(net, [torch.randn(50, 3)], progress=False)
    >>> small = fxprune.transform(net, torch.randn(1, 3), ratio=0.5, importance=importance_from(found))
    >>> small.get_submodule("0")
    Linear(in_features=3, out_features=4, bias=True)
    """
    if not isinstance(statistics, ActivationStatistics):
        do = "pass what activation_statistics returns"
        raise PlanError(f"statistics cannot be a {type(statistics).__name__}", do=do)
    if kind not in ("apoz", "mean"):
        raise PlanError(f"unknown kind {kind!r}", do='use "apoz" or "mean"')
    names = {layer: layer for layer in statistics} | dict(layers or {})
    absent = [name for name in names.values() if name not in statistics]
    if absent:
        raise PlanError(f'there are no statistics of "{absent[0]}"', why=nearest(absent[0], statistics))
    taken = {layer: statistics[name] for layer, name in names.items()}
    if kind == "mean":
        return scores_by_layer({layer: s.mean_abs for layer, s in taken.items()}, what="activation statistics")
    alive = scores_by_layer({layer: 1 - s.zeros for layer, s in taken.items()}, what="activation statistics")

    def apoz(group: Group) -> Tensor:
        scores = alive(group)
        if bool((scores == 1).all()):
            raise PlanError(
                "nothing is ever zero in a group",
                at=f'group "{group.name}"',
                why="no activation that makes zeros follows its layers, or none was found where tracing failed",
                do='use kind="mean", collect with a threshold, or leave the group out with ignore',
            )
        return scores

    return apoz
