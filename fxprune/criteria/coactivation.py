"""Coactivation as a criterion: a channel stays if both ends of its connections are often active together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_arguments
from fxprune.criteria.connections import Layer, check_threshold, coactivation
from fxprune.criteria.table import measured
from fxprune.errors import InputError, PlanError
from fxprune.progress import bar
from fxprune.running.inputs import called, not_finite
from fxprune.running.processes import Processes

NAMES = (
    *("weight", "weight_orig", "weight_v"),
    *("parametrizations.weight.original", "parametrizations.weight.original1"),
)
"""The names of a layer's weight, or of the parameter of the same shape that it is computed from."""


@dataclass(frozen=True, eq=False)
class CoactivationImportance:
    """An importance for `fxprune.transform` and `analysis.plan`: takes a group, returns one score per channel.

    rates: for the weight of every layer that ran, by name, how often each connection was active at both ends, as a
    share of the times the weight was applied; in [0, 1], float64, of the weight's shape.

        score[c] = mean over members (W, dim) of mean over slots s of c, and all other indices, of rates[W][.. s ..]

    Members are the producer's output dimension and the consumers' input dimensions alike: a channel counts as much by
    what makes it as by what is made of it.
    """

    rates: Mapping[str, Tensor]

    def __call__(self, group: Group) -> Tensor:
        """Scores of the group's channels, in [0, 1], higher = keep.

        Raises `PlanError` for a group in which no weight was counted, and where a weight has another shape than it had.
        """
        parts = [self._of(member, group.size) for member in group.members if member.parameter in self.rates]
        if not parts:
            named = ", ".join(dict.fromkeys(member.parameter for member in group.members))
            raise PlanError(
                "no coactivation was counted for a group",
                at=f'group "{group.name}"',
                why=f"none of {named} is the weight of a linear layer or convolution that ran",
                do="leave the group out with ignore",
            )
        return torch.stack(parts).mean(0)

    def _of(self, member: Member, size: int) -> Tensor:
        rates = self.rates[member.parameter]
        if rates.shape != member.tensor.shape:
            raise PlanError(
                "the importance was counted in another model",
                at=f'"{member.parameter}"',
                why=f"there its shape was {tuple(rates.shape)}, here it is {tuple(member.tensor.shape)}",
                do="count again, with this model",
            )
        along = rates.movedim(member.dim, 0).flatten(1).mean(1)
        return member.per_channel(along, size) / member.per_channel(torch.ones_like(along), size)


@checks_arguments("model", "loader", "progress")
@measured("coactivation")
def coactivation_importance(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    threshold: float = 0.0,
    batches: int | None = None,
    progress: bool = True,
    process_group: Any = None,
) -> CoactivationImportance:
    """Run a model over data and count coactivations in every nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d.

    After Hebb 1949, "The Organization of Behavior": a connection is worth as much as both its ends are active together.
    Strengths are sums over all batches, divided by the number of times a weight was applied (examples times
    positions; at the borders some of these meet padding, which is never active). A weight that several layers share,
    or that is applied several times in a forward, is counted wherever it is applied. The model runs in evaluation mode
    and without gradients; its modes are put back.

    Args:
        model: any module; it is only read.
        loader: batches, as `torch.optim.swa_utils.update_bn` takes them: a tensor, or a tuple or list whose first
            element is the input; or a dict of keyword arguments.
        threshold: above it an input or an output is active.
        batches: at most so many, all by default.
        progress, process_group: as in `fxprune.criteria.taylor_importance`.

    Raises `PlanError` for a model without such layers, `InputError` for a loader without batches or with one that is
    none of these.

    >>> import fxprune
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> importance = coactivation_importance(net, [torch.randn(32, 4) for _ in range(5)])
    >>> fxprune.transform(net, torch.randn(1, 4), ratio=0.5, importance=importance).get_submodule("0")
    Linear(in_features=4, out_features=4, bias=True)
    """
    check_threshold(threshold)
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise PlanError(
            f"batches must be an integer of at least 1, or None, not {batches!r}", do="pass batches=10, or None for all"
        )
    layers = _layers(model)
    counts: dict[int, Tensor] = {}
    applied: dict[int, int] = {}

    def count(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        input, key = next(iter((*args, *kwargs.values()))), _key(layer)
        if not output.numel():  # an expert that was given no token
            return
        if not bool(input.isfinite().all() and output.isfinite().all()):
            raise not_finite(layers[layer][0], "in one of the batches")
        found = coactivation(input, output, layer, threshold)
        counts[key] = counts[key] + found if key in counts else found
        applied[key] = applied.get(key, 0) + output.numel() // found.shape[0]

    training = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            _run(model, loader, batches, progress)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    own = {name: counts[_key(layer)] for layer, names in layers.items() if _key(layer) in counts for name in names}
    times = {name: applied[_key(layer)] for layer, names in layers.items() if _key(layer) in counts for name in names}
    processes = Processes(process_group)
    totals, _ = processes.sums({name: count.cpu() for name, count in own.items()}, 0)
    all_times = processes.all(times)
    rates = {name: total.double() / sum(some.get(name, 0) for some in all_times) for name, total in totals.items()}
    return CoactivationImportance(rates)


def _layers(model: nn.Module) -> dict[Any, list[str]]:
    """Every layer that can be counted, with all names of its weight. Raises `PlanError` if there is none."""
    found: dict[Layer, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            shape = None if nn.parameter.is_lazy(module.weight) else module.weight.shape
            own = [n for n, p in module.named_parameters() if n in NAMES and p.shape == shape]
            found.setdefault(module, []).extend(f"{path}.{name}" if path else name for name in own)
    if not any(found.values()):
        raise PlanError(
            f"{type(model).__name__} has no linear layer and no convolution to count in",
            do="pass a model with linear layers or convolutions",
        )
    return {layer: names for layer, names in found.items() if names}


def _key(layer: Any) -> int:
    """The same for layers that share their weight."""
    return id(layer._parameters.get("weight", layer))


def _run(model: nn.Module, loader: Iterable[Any], batches: int | None, progress: bool) -> None:
    number = 0
    for number, batch in enumerate(bar(loader, what="coactivation", unit="batch", show=progress), 1):
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(batch, Mapping):
            called(model, ((), dict(batch)), number - 1)
        elif isinstance(first, Tensor):
            called(model, ((first,), {}), number - 1)
        else:
            raise InputError(
                "a batch holds no input",
                at=f"batch {number}",
                why=f"it is {type(batch).__name__}",
                do="let the loader give tensors, tuples whose first element is the input, or dicts of keywords",
            )
        if number == batches:
            return
    if not number:
        raise InputError("the loader gave no batches", do="pass a list or a DataLoader; a used-up iterator is empty")
