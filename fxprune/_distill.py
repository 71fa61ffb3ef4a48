"""`distillation`: the small model learns from the large one, channel by channel and without adapters."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune._find import AnalyzeArguments, find
from fxprune._follow.parameters import counterparts_of
from fxprune._record import record
from fxprune.analysis.findings import Findings
from fxprune.arguments import checks_arguments, checks_names
from fxprune.capture.process_state import public_call
from fxprune.capture.values import leaves, map_tensors, tensors_in
from fxprune.channels.groups import Bools, Removal
from fxprune.depth.carry_out import without_dropped
from fxprune.depth.dropped import Dropped, gone_with
from fxprune.depth.numbering import name_after
from fxprune.errors import PlanError
from fxprune.fold import resolve_plan
from fxprune.ops.factors import Value, is_one
from fxprune.ops.registry import Operand
from fxprune.rewrite.graph import scale_factors


@dataclass(frozen=True)
class Distilled:
    """The result of one call of a `Distillation`.

    output, target: what the small and the large model return. The target has no gradients.
    features: the mean over the layers of |small - large|^2 / |large|^2, at the channels that stay; a scalar.
    outputs: the same for the outputs; a scalar.
    layers: the summands of `features` by layer.
    """

    output: Any
    target: Any
    features: torch.Tensor
    outputs: torch.Tensor
    layers: Mapping[str, torch.Tensor]


class Distillation:
    """A small model beside the large one that it was made from; see `distillation`.

    A call runs both models on the same inputs, the large one without gradients. It costs one forward of the large
    model, and holds copies of the outputs of the chosen layers. Each model is in the mode that it was put into: a large
    one in training mode goes on updating the statistics of its batch norms.
    """

    @checks_names
    def __init__(
        self,
        small: nn.Module,
        model: nn.Module,
        kept: Mapping[str, Sequence[Mapping[int, Bools]]],
        dropped: Sequence[Dropped] = (),
    ) -> None:
        self.small, self.model = small, model
        self._kept, self._dropped = kept, dropped

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the layers whose outputs are compared."""
        return tuple(self._kept)

    def __repr__(self) -> str:
        names = type(self.small).__name__, type(self.model).__name__
        compared = ", ".join(map(repr, self.layers)) if self.layers else "no layers"
        return f"Distillation of {names[0]} from {names[1]}: the results and {compared}"

    def __call__(self, *args: Any, **kwargs: Any) -> Distilled:
        """Returns the outputs of both models and the losses between them."""
        with _watched(self.model, self._kept) as (large, large_calls), torch.no_grad():
            target = self.model(*args, **kwargs)
        with _watched(self.small, self._kept) as (small, small_calls):
            output = self.small(*args, **kwargs)
        if self._dropped:
            _check_calls(small_calls, large_calls, self._dropped)
        layers = {name: self._error(small[name], large[name], self._kept[name]) for name in self._kept}
        outputs = self._error(output, target, None)
        features = torch.stack(list(layers.values())).mean() if layers else torch.zeros_like(outputs)
        return Distilled(output, target, features, outputs, layers)

    @staticmethod
    def _error(small: Any, large: Any, kept: Sequence[Mapping[int, Bools]] | None) -> torch.Tensor:
        """The mean of the relative squared errors of all tensors with real numbers in two results."""
        errors = []
        for number, (a, b) in enumerate(zip(tensors_in(small), tensors_in(large), strict=True)):
            for dim, flags in (kept[number] if kept is not None else {}).items():
                b = b.index_select(dim, torch.from_numpy(flags.nonzero()[0]).to(b.device))
            if a.is_floating_point():
                wide = torch.promote_types(a.dtype, torch.float32)  # squares of half precision overflow
                a, b = a.to(wide), b.to(wide)
                errors.append((a - b).square().sum() / b.square().sum().clamp_min(torch.finfo(wide).tiny))
        return torch.stack(errors).mean() if errors else torch.zeros(())


@contextlib.contextmanager
def _watched(model: nn.Module, names: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Counter[str]]]:
    """The outputs of some layers during a forward, and how often each was called.

    Of a layer that is called more than once, the output is that of the first call.
    """
    seen: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    handles = []
    for name in names:

        def keep(module: nn.Module, args: Any, made: Any, name: str = name) -> None:
            calls[name] += 1
            if name not in seen:  # what comes next may write into it
                seen[name] = map_tensors(made, torch.Tensor.clone)

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield seen, calls
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(small: Counter[str], large: Counter[str], dropped: Sequence[Dropped]) -> None:
    """Raise `PlanError` for a layer that a branch called as well: its first call may have gone with the branch."""
    for name in large:
        if small[name] != large[name]:
            raise PlanError(
                "the calls of a layer have no counterparts in the small model",
                at=f'layers: "{name}"',
                why=f"the large model calls it {large[name]} times, the small one {small[name]} times, without the "
                f"branches {', '.join(map(str, dropped))}",
                do="choose a layer that no branch which went whole calls, such as one around it",
            )


@checks_arguments("model", "small", "layers")
@public_call()
def distillation(
    small: nn.Module, model: nn.Module, example_inputs: Any, *, layers: Sequence[str] = ()
) -> Distillation:
    """Returns a function that runs a small model beside its original, and gives the losses between them.

    The plan knows which channel of the small model is which of the large one, so their features are compared directly,
    without adapters (Romero et al. 2015, "FitNets", https://arxiv.org/abs/1412.6550, equation 3, relative to the norm
    of the target).

    Args:
        small: what `transform` returned, before or after training.
        model: the model that was given to `transform`, the teacher.
        example_inputs: as for `transform`. The model is analysed on them, to find the channels of the layers.
        layers: the paths of modules whose outputs are compared. By default there are none: the results alone are
            compared, and `made.features` is 0.

    Returns a `Distillation`: `made = distill(x)` has `made.output`, `made.features`, `made.outputs`.

    Raises `PlanError` if `small` was made from another model, and for a layer that the models do not have, that forward
    does not call, that went with a residual branch, or whose outputs the plan multiplies by a factor.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(3, 4)
    >>> small = fxprune.transform(net, x, ratio=0.5)
    >>> made = fxprune.distillation(small, net, x, layers=["1"])(x)
    >>> made.output.shape, made.features.item(), made.outputs.item() > 0
    (torch.Size([3, 2]), 0.0, True)
    """
    plan = counterparts_of(model, small).plan
    gone = record(small).layers_gone
    for name in layers:
        _check_stays(name, plan.dropped)
        if name_after(name, gone) != name:
            why = "layers before it are gone, and the small model counts the others from 0"
            do = "choose a layer before those that are gone, or one around all of them"
            raise PlanError("the layer has another name in the small model", at=f'layers: "{name}"', why=why, do=do)
        _check_layer(name, small, model)
    if not layers:
        return Distillation(small, model, {})
    shallow = without_dropped(model, plan.dropped) if plan.dropped else model
    findings = find(AnalyzeArguments(shallow, example_inputs, path=plan.path))
    removal = resolve_plan(findings, replace(plan, structure=None)).removal
    scaled = _Scaled.of(findings, removal) if plan.factors else _Scaled({}, [])
    kept: dict[str, list[dict[int, Bools]]] = {}
    for name in layers:
        visit = findings.observed.visits.get(name)
        if visit is None:
            raise PlanError(
                "a layer was not seen in the analysis",
                at=f'"{name}"',
                why="forward does not call it on these inputs, or it is no module of the captured model",
                do="choose a layer that forward calls",
            )
        scaled.refuse(name)
        operands = [leaf for leaf in leaves(visit.output, Operand) if isinstance(leaf, Operand)]
        kept[name] = [_flags(removal.kept, operand) for operand in operands]
    return Distillation(small, model, kept, plan.dropped)


def _flags(kept_of: Any, operand: Operand) -> dict[int, Bools]:
    found = {dim: kept_of(vector) for dim, vector in enumerate(operand.vectors)}
    return {dim: flags for dim, flags in found.items() if flags is not None}


def _check_stays(name: str, dropped: Sequence[Dropped]) -> None:
    """Raise `PlanError` for a layer of a branch that went whole: nothing of the small model is its counterpart."""
    one = gone_with(name, dropped)
    if one is not None:
        raise PlanError(
            "the layer is gone in the small model",
            at=f'layers: "{name}"',
            why=f'it went with the residual branch "{one.name}", added in {one.at}',
            do="choose a layer that stays, such as one around the whole branch",
        )


def _check_layer(name: str, small: nn.Module, model: nn.Module) -> None:
    for kind, each in (("small", small), ("large", model)):
        if name not in dict(each.named_modules(remove_duplicate=False)) or not name:
            why, do = f"the {kind} model does not have it", "choose from model.named_modules()"
            raise PlanError("there is no such layer", at=f'layers: "{name}"', why=why, do=do)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The values that a factor of the plan multiplies, on their way from a weight to the scale that needs it.

    made_in: value -> the path of the module that makes it. read_in: pairs of a value and the path of a module that
    reads it; None where it is a result of the model.
    """

    made_in: Mapping[Value, str]
    read_in: Sequence[tuple[Value, str | None]]

    @classmethod
    def of(cls, findings: Findings, removal: Removal) -> _Scaled:
        """Those of a removal."""
        factors, steps = scale_factors(findings, removal).results, findings.observed.steps
        place = {id(step): findings.events[step.event].module for step in steps.done}
        made_in = {
            value: place[id(step)]
            for step in steps.done
            for value, factor in zip(step.made, factors.get(step.key, ()), strict=False)
            if not is_one(factor)
        }
        read = [(value, place[id(step)]) for step in steps.done for value in step.read if value in made_in]
        return cls(made_in, [*read, *((value, None) for value in steps.results if value in made_in)])

    def leaves(self, layer: str) -> bool:
        """True if such a value leaves a layer."""
        return any(
            _inside(self.made_in[value], layer) and (reader is None or not _inside(reader, layer))
            for value, reader in self.read_in
        )

    def refuse(self, layer: str) -> None:
        """Raises `PlanError` for a layer whose outputs are multiplied."""
        if self.leaves(layer):
            parts = layer.split(".")
            around = (".".join(parts[:number]) for number in range(len(parts) - 1, 0, -1))
            better = next((f'"{name}"' for name in around if not self.leaves(name)), "")
            raise PlanError(
                "the features of a layer have another scale",
                at=f'layers: "{layer}"',
                why="its outputs are multiplied by a factor of the plan, which a scale outside of it takes back",
                do=f"choose {better}, which is around it" if better else "choose a layer that comes after this scale",
            )


def _inside(module: str, layer: str) -> bool:
    return module == layer or module.startswith(f"{layer}.")
