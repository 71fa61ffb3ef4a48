"""Proof by shapes: every operation of the small model gives the shape that the analysis promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound, numbers_of
from fxprune.analysis.observed import Observation
from fxprune.capture.fake_tensors import run
from fxprune.capture.scopes import Key, Scopes
from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector


class ContradictionError(Exception):
    """An operation gives another shape than the analysis promises, or is called with wrong numbers or positions.

    vectors: the vectors of the dimensions that are wrong.
    """

    def __init__(self, why: str, vectors: tuple[Vector, ...]) -> None:
        self.vectors = vectors
        super().__init__(why)


@dataclass(frozen=True, eq=False)
class Changed:
    """An operation that is called with other fractions than in the original.

    before, after: all its fractions. vectors: the dimensions from which they are known to be computed.
    """

    key: Key
    before: tuple[float, ...]
    after: tuple[float, ...]
    vectors: tuple[Vector, ...]

    def __str__(self) -> str:
        return f"{self.key[2]} inside is called with {self.after}, computed from a size; it was {self.before}"


class ShapeCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that compares the operations inside a node with those that the analysis has seen.

    It compares the shapes of results, fractions and positions. Comparing the result of the node alone would prove too
    little: `view(n, 4, c // 4)` inside a function works for any c, but after whole heads were removed, 4 is no longer
    the number of heads.

    replaced: paths of modules that run other operations in the small model than in the original; they are left out.
    expected: what the analysis has seen of the node that runs.
    changed: the operations that are called with other fractions. The caller looks at them after all shapes have turned
        out right.
    """

    def __init__(self, removal: Removal, scopes: Scopes, replaced: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.removal, self.scopes, self.replaced = removal, scopes, replaced
        self.expected = Observation()
        self.changed: list[Changed] = []
        scopes.on_attention = lambda key, named, made: self._same_numbers(key, (named["scale"],))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        scope = self.scopes.current
        if func.namespace == "prim" or scope.depends_on_sizes or scope.path in self.replaced:
            return made
        name, named = bound(func, args, kwargs or {})
        key = scope.next_key(name)
        # of a tensor of literals only the numbers are compared; torch calls `detach` on its own account after `arange`
        if name not in ("aten::lift_fresh", "aten::detach"):
            self._same_shapes(key, made)
        self._same_numbers(key, numbers_of(name, named))
        self._same_positions(key, named)
        return made

    def _same_shapes(self, key: Key, made: Any) -> None:
        """Raises `ContradictionError` if results have other shapes than the analysis has seen and promises."""
        promised = self.expected.outputs.get(key)
        if promised is None:
            return
        tensors = [t for t in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(t, torch.Tensor)]
        for tensor, operand in zip(tensors, promised, strict=True):
            counts = self.removal.shape(operand.vectors)
            if tuple(tensor.shape) != counts:
                wrong = [
                    v for v, have, want in zip(operand.vectors, tensor.shape, counts, strict=False) if have != want
                ]
                why = f"{key[2]} inside gives shape {tuple(tensor.shape)}, the analysis promises {counts}"
                raise ContradictionError(why, tuple(wrong))

    def _same_numbers(self, key: Key, numbers: tuple[float, ...]) -> None:
        before, vectors = self.expected.numbers.get(key, (numbers, ()))
        if len(numbers) == len(before) and numbers != before:
            self.changed.append(Changed(key, before, numbers, vectors))

    def _same_positions(self, key: Key, named: Mapping[str, Any]) -> None:
        """Raises `ContradictionError` if a position is not the number of kept slots before the old position."""
        for argument, old, vector in self.expected.positions.get(key, ()):
            kept = self.removal.kept(vector)
            if kept is None:
                continue
            if argument == "index" and old is None:
                raise ContradictionError(f"{key[2]} picks by a list of positions that forward makes", (vector,))
            if argument == "shifts":
                position, old = old
                new, want = named["shifts"][position], int(kept[len(kept) - old % len(kept) :].sum())
                right = new % int(kept.sum()) == want % int(kept.sum())
            else:
                new = named.get(argument)
                right = _rank(old, kept) == _rank(new, np.ones(int(kept.sum()), dtype=bool))
            if not right:
                raise ContradictionError(f"{key[2]} has {argument} {new}, which was {old} before slots went", (vector,))


def _rank(position: int | None, kept: Bools) -> int:
    """The number of kept slots before a position. A negative position counts from the end; None is the beginning."""
    if position is None:
        return 0
    position = max(position + len(kept), 0) if position < 0 else position
    return int(kept[: min(position, len(kept))].sum())
