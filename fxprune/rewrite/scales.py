"""Scales that code computes from a smaller width: weights carry their ratio, or the width stays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Walked
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.fake_operations import run
from fxprune.capture.fake_tensors import Faker
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import clean_caches, same_random_state
from fxprune.capture.scopes import Key, Scopes
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.proof.shapes import Changed
from fxprune.rewrite.carriers import NoCarrierError, carried


@dataclass(frozen=True, eq=False)
class OtherNumber:
    """An operation of the smaller graph that is called with other numbers than in the original.

    before, node: the node that runs it, in the original and in the smaller graph. seen: the run of the original.
    """

    changed: Changed
    before: fx.Node
    node: fx.Node
    seen: Walked

    @property
    def scope(self) -> str:
        """The path of the module that runs it, or "%node"."""
        return self.changed.key[0].partition("|")[0]


class HeldWidthsError(Exception):
    """No weights can carry a ratio, so widths have to stay.

    number: the first of the operations that need it. vectors: these widths.
    """

    def __init__(self, why: str, number: OtherNumber, vectors: tuple[Vector, ...]) -> None:
        self.number, self.vectors = number, vectors
        super().__init__(why)


def factors_for(findings: Findings, removal: Removal, numbers: Sequence[OtherNumber]) -> ScaleFactors:
    """The factors with which the smaller model is right although operations are called with other numbers.

    Raises `HeldWidthsError` where no weights can carry them.
    """
    if not numbers:
        return ScaleFactors()
    _refuse_other_runs(findings, removal, numbers)
    by_key = {number.changed.key: number for number in reversed(numbers)}
    parameters = [(name, tensor) for name, tensor in findings.tensors.items() if isinstance(tensor, nn.Parameter)]
    trainable = [name for name, tensor in parameters if tensor.is_floating_point()]
    try:
        changed = [number.changed for number in by_key.values()]
        with same_random_state():  # operations are tried, and some draw
            return carried(findings.observed.steps, changed, trainable, _types_of_numbers(findings, changed))
    except NoCarrierError as error:
        event = findings.events[error.event]
        where = f" in {event.module or 'the model'} ({event.source})" if error.event else ""
        held = [by_key[changed.key] for changed in error.changed]
        vectors = tuple(vector for number in held for vector in _widths(number, removal))
        why = f"{held[0].changed}, and no weights can carry the ratio: {error}{where}"
        raise HeldWidthsError(why, held[0], vectors) from None


def _refuse_other_runs(findings: Findings, removal: Removal, numbers: Sequence[OtherNumber]) -> None:
    """Raises `HeldWidthsError` if the numbers of an operation change by another ratio, or not at all, in another run.

    Weights that carry the ratio for the one run would be wrong for the other.
    """
    changed = {(id(number.seen), number.changed.key): number.changed.after for number in numbers}
    seen = [call for run in findings.runs for call in run.calls]
    for number in numbers:
        key, name = number.changed.key, number.before.name
        for call in seen:
            before, _ = call.observations[name].numbers.get(key, ((), ()))
            after = changed.get((id(call), key), before)
            if before and not _same_ratios(number.changed, before, after):
                why = (
                    f"{number.changed}, and no weights can carry the ratio: in another run it is {after}, was {before}"
                )
                raise HeldWidthsError(why, number, tuple(_widths(number, removal)))


def _same_ratios(changed: Changed, before: Sequence[float], after: Sequence[float]) -> bool:
    """True if numbers change by the same ratios as those of `changed`."""
    rows = zip(changed.before, changed.after, before, after, strict=False)
    return len(before) == len(changed.before) and all(math.isclose(a * d, b * c, rel_tol=1e-12) for a, b, c, d in rows)


def _types_of_numbers(findings: Findings, changed: Sequence[Changed]) -> dict[Key, torch.dtype]:
    """The operations whose result has a type of its own, not that of the model: `torch.tensor(0.5)` is a float32.

    Found by a run on fake tensors in float64. Done only where forward makes tensors of numbers that have changed.
    """
    if not any(entry.key[2] in ("aten::lift_fresh", "aten::full", "aten::scalar_tensor") for entry in changed):
        return {}
    faker, captured = Faker(), findings.captured

    def double(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return faker.tensor(tensor)
        return doubled.setdefault(id(tensor), faker.tensor(tensor.to("meta", torch.float64)))

    doubled: dict[int, torch.Tensor] = {}
    module = copy_module(captured.module, double)
    inputs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, captured.values(findings.inputs)
    )
    types = _Types(Scopes(module))
    with contextlib.suppress(CaptureError), clean_caches(findings.model):
        walk(captured.graph, module, faker, inputs, types.visit, (types.scopes.watching(), types))
    return types.found


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that notes the types of numbers that are tensors."""

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = scopes
        self.found: dict[Key, torch.dtype] = {}

    def visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        """Run a node."""
        self.scopes.node(node.name)
        return execute()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        if func.namespace != "prim":
            key = self.scopes.current.next_key(func._schema.name)
            if isinstance(made, torch.Tensor) and not made.ndim:
                self.found[key] = made.dtype
        return made


def _widths(number: OtherNumber, removal: Removal) -> list[Vector]:
    """The dimensions that have to keep their size so that an operation is called with the numbers of before."""
    changed = number.changed
    if changed.vectors:
        return list(changed.vectors)
    outputs = number.seen.observations[number.before.name].outputs
    inside = (o for key, made in outputs.items() if key[0].partition("|")[0] == number.scope for o in made)
    shrinking = [*{id(v): v for o in inside for v in o.vectors if removal.count(v) != v.size}.values()]
    pairs = [(a, b) for a, b in zip(changed.before, changed.after, strict=True) if a != b and b]
    exactly = [v for v in shrinking if any(_is_power(v.size, a) for a, _ in pairs)]
    return exactly or [v for v in shrinking if any(_is_power(v.size / removal.count(v), a / b) for a, b in pairs)]


def from_a_width(changed: Changed, widths: Sequence[Vector], removal: Removal) -> bool:
    """True if other numbers are what code computes from the widths of before and of now, not from numbers in tensors.

    Where a forward decides by numbers it also counts what it has decided for, such as the boxes that are left.
    """
    sizes = {(v.size, removal.count(v)) for v in widths}
    pairs = [(a, b) for a, b in zip(changed.before, changed.after, strict=True) if a != b]
    return all(any(_computed(*pair, *size) for size in sizes) for pair in pairs)


def _computed(before: float, after: float, width: int, count: int) -> bool:
    """True if two numbers are the same power of two widths, or such a power times the same fraction."""
    if not before or not count or count == width:
        return False
    same = [p for p in _POWERS if math.isclose((width / count) ** p, before / after if after else 0.0, rel_tol=1e-9)]
    return any(before % 1 != 0 or math.isclose(width**power, before, rel_tol=1e-9) for power in same)


def _is_power(width: float, number: float) -> bool:
    """True if a number is what code usually computes from a width: its root, the root of that, or their inverses."""
    return any(math.isclose(width**power, number, rel_tol=1e-9) for power in _POWERS)


_POWERS = (-0.5, 0.5, -0.25, 0.25, -1.0, 1.0)
