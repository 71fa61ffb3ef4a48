"""Activation statistics as an importance: channels that are seldom zero, or large, stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from fxprune.analysis.findings import Group
from fxprune.arguments import checks_arguments
from fxprune.criteria.by_layer import scores_by_layer
from fxprune.errors import PlanError, nearest


@dataclass(frozen=True)
class LayerStatistics:
    """The activations of one layer.

    layer: its name. at: the module whose output was counted, the layer itself or one behind it. calls: the number of
    calls. count: the number of values per channel. zeros: the share of them that is zero, [c]. mean_abs: the mean of
    |x|, [c]. variance: of x, [c]. rank: the mean rank of the maps of a channel, [c]; None if it was not measured.
    """

    layer: str
    at: str
    calls: int
    count: int
    zeros: Tensor
    mean_abs: Tensor
    variance: Tensor | None = None
    rank: Tensor | None = None

    @property
    def sparsity(self) -> float:
        """The share of zeros over all channels."""
        return float(self.zeros.mean())


@dataclass(frozen=True)
class ActivationStatistics(Mapping[str, LayerStatistics]):
    """The statistics of a model's layers, by name.

    missing: layers that no batch went through. path: "fx" where a traced graph was run, so that the activation behind
    a layer could be found; "hooks" where the model was run as it is. why_not: why not "fx".
    """

    layers: Mapping[str, LayerStatistics]
    batches: int
    missing: tuple[str, ...]
    path: str
    why_not: str = ""

    def __getitem__(self, layer: str) -> LayerStatistics:
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def table(self) -> str:
        """One row per layer: zeros over all channels, of the channels with fewest and most of them, mean |x|."""
        from tabulate import tabulate

        rows = []
        for s in self.layers.values():
            shares = (s.sparsity, float(s.zeros.min()), float(s.zeros.max()), float(s.mean_abs.mean()))
            rows.append((s.layer, s.at, len(s.zeros), s.count, *shares))
        headers = ("layer", "taken at", "channels", "values each", "zeros", "least", "most", "mean |x|")
        return tabulate(rows, headers=headers, floatfmt=".3f", disable_numparse=[0, 1])


@checks_arguments("layers")
def importance_from(
    statistics: ActivationStatistics, kind: str = "apoz", *, layers: Mapping[str, str] | None = None
) -> Callable[[Group], Tensor]:
    """An importance for `fxprune.transform` and `plan`: channels that are seldom zero, or large, stay.

    "apoz": score[c] = 1 - zeros[c] (Hu et al. 2016); "mean", "variance", "rank": score[c] = mean_abs[c], variance[c],
    rank[c]. Of a group, the layers whose outputs open it count, by their mean; see
    `fxprune.criteria.scores_by_layer`.

    layers: layer -> the name under which its statistics stand, for models that cannot be traced, where an activation
        module was recorded under its own name: {"block.fc1": "block.act"}.

    Raises `PlanError`: here for an unknown kind or name; when the importance is called for a group without
    statistics, and for one in which nothing is ever zero, so that "apoz" says nothing.

    >>> import fxprune, torch
    >>> from torch import nn
    >>> from fxprune.criteria.statistics import activation_statistics
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = activation_statistics(net, [torch.randn(50, 3)], progress=False)
    >>> small = fxprune.transform(net, torch.randn(1, 3), ratio=0.5, importance=importance_from(found))
    >>> small.get_submodule("0")
    Linear(in_features=3, out_features=4, bias=True)
    """
    if not isinstance(statistics, ActivationStatistics):
        do = "pass what activation_statistics returns"
        raise PlanError(f"statistics cannot be a {type(statistics).__name__}", do=do)
    if kind not in ("apoz", "mean", "variance", "rank"):
        raise PlanError(f"unknown kind {kind!r}", do='use "apoz", "mean", "variance" or "rank"')
    names = {layer: layer for layer in statistics} | dict(layers or {})
    absent = [name for name in names.values() if name not in statistics]
    if absent:
        raise PlanError(
            f'there are no statistics of "{absent[0]}"',
            why=nearest(absent[0], statistics),
            do="record statistics of this layer, or name others for it in `layers`",
        )
    taken = {layer: statistics[name] for layer, name in names.items()}
    if kind != "apoz":
        known = {layer: getattr(s, "mean_abs" if kind == "mean" else kind) for layer, s in taken.items()}
        known = {layer: values for layer, values in known.items() if values is not None}
        if kind == "rank" and not known:
            raise PlanError(
                "no layer of the model has ranks of maps",
                why="a map is height x width, so they are measured of outputs [samples, channels, height, width]",
                do='rank by "activation_mean" or "activation_variance"',
            )
        return scores_by_layer(known, what="ranks of maps" if kind == "rank" else "activation statistics")
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
