"""Proof by shapes: every operation of the small model gives the shape that the analysis promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound, numbers_of
from fxprune.analysis.observed import Observation
from fxprune.analysis.seeded_draws import own_seed
from fxprune.capture.fake_operations import run
from fxprune.capture.scopes import Key, Scopes
from fxprune.capture.seeds import UNSEEDED
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.channels.vector import Vector


class ContradictionError(Exception):
    """An operation gives another shape than the analysis promises, or is called with wrong numbers or positions.

    vectors: the vectors of the dimensions that are wrong.
    operation, places: the operation with a wrong shape, None if the shape is right, and where: the number of the
        result, and the dimension.
    """

    def __init__(
        self,
        why: str,
        vectors: tuple[Vector, ...],
        operation: Key | None = None,
        places: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.vectors, self.operation, self.places = vectors, operation, places
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
    seeds: the operations that draw by a seed of forward's own, with that of the original and that of the small model.
    """

    def __init__(self, removal: Removal, scopes: Scopes, replaced: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.removal, self.scopes, self.replaced = removal, scopes, replaced
        self.expected = Observation()
        self.changed: list[Changed] = []
        self.seeds: list[tuple[Key, int, int]] = []
        self._lists: dict[int, tuple[torch.Tensor, Ints | None]] = {}
        scopes.on_attention = lambda key, named, made: self._same_numbers(key, (named["scale"],))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        scope = self.scopes.current
        if func.namespace == "prim" or scope.depends_on_sizes or scope.path in self.replaced:
            return made
        name, named = bound(func, args, kwargs or {})
        key = scope.next_key(name)
        # of a tensor of literals only the numbers are compared; torch calls `detach` on its own account after `arange`,
        # and `clone`, whose result has the shape of its argument, where `reshape` finds strides that make no view
        if name == "aten::lift_fresh":
            self._lists[id(made)] = made, _numbers(args[0])
        elif name not in ("aten::detach", "aten::clone"):
            self._same_shapes(key, made)
        if key in self.expected.seeds and (seed := own_seed(func, named, UNSEEDED)) is not None:
            self.seeds.append((key, self.expected.seeds[key], seed))
        self._same_numbers(key, numbers_of(name, named))
        self._same_positions(key, named)
        return made

    def _same_shapes(self, key: Key, made: Any) -> None:
        """Raises `ContradictionError` if results have other shapes than the analysis has seen and promises."""
        promised = self.expected.outputs.get(key)
        if promised is None:
            return
        tensors = [t for t in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(t, torch.Tensor)]
        for number, (tensor, operand) in enumerate(zip(tensors, promised, strict=True)):
            counts = self.removal.shape(operand.vectors)
            # torch makes tangents that are zero on its own account, in the sizes of what they belong to
            if tuple(tensor.shape) != counts and not tensor._is_zerotensor():
                dims = not_adapted(operand.vectors, tensor.shape, self.removal)
                why = f"{key[2]} gives shape {tuple(tensor.shape)} in the small model, and has to give {counts}"
                places = tuple((number, dim) for dim in dims)
                raise ContradictionError(why, tuple(operand.vectors[dim] for dim in dims), key, places)

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
            if argument == "index" and type(old) is not int:  # a list of positions, not one of `select`
                if old is None or not _same_list(old[1], self._positions(named, old[0]), kept):
                    raise ContradictionError(f"{key[2]} picks by a list of positions that forward makes", (vector,))
                continue
            if argument == "shifts":
                position, old = old
                new, want = named["shifts"][position], int(kept[len(kept) - old % len(kept) :].sum())
                right = new % int(kept.sum()) == want % int(kept.sum())
            elif argument == "pad":  # slots that are added at the beginning, or cut off where it is negative
                position, old = old
                new = named["pad"][position]
                right = new == int(kept[: abs(old)].sum()) * (1 if old > 0 else -1)
            elif argument == "stride":  # the number of slots of the dimensions after this one
                position, old = old
                new = named["stride"][position]
                right = new == int(kept.sum())
            else:
                new = named.get(argument)
                right = _rank(old, kept) == _rank(new, np.ones(int(kept.sum()), dtype=bool))
            if not right:
                raise ContradictionError(f"{key[2]} has {argument} {new}, which was {old} before slots went", (vector,))

    def _positions(self, named: Mapping[str, Any], number: int) -> Ints | None:
        """The numbers of a list of positions, the tensor of this number among the arguments; None if not known."""
        index = tensors_in(list(named.values()))[number]
        _, known = self._lists.get(id(index), (index, None))
        return _numbers(index) if known is None else known


def not_adapted(vectors: Sequence[Vector], sizes: Sequence[int | None], removal: Removal) -> tuple[int, ...]:
    """The dimensions with wrong sizes after a removal; of these, those that have the size of the original, if any has.

    Such a size is a number in code, and the others are wrong because of it.

    sizes: one per dimension, None for one that follows from the others.
    """
    pairs = list(enumerate(zip(vectors, sizes, strict=False)))
    wrong = [dim for dim, (vector, size) in pairs if size is not None and size != removal.count(vector)]
    return tuple([dim for dim in wrong if sizes[dim] == vectors[dim].size] or wrong)


def _numbers(index: torch.Tensor) -> Ints | None:
    """The numbers of a tensor of positions, None if they are not known."""
    known = index.constant if isinstance(index, FakeTensor) else index
    with unset_fake_temporarily():
        return None if known is None else known.detach().cpu().reshape(-1).to(torch.int64).numpy()


def _same_list(old: Ints, new: Ints | None, kept: Bools) -> bool:
    """True if the positions in a list are those that the old ones have become; those of removed slots are gone."""
    old = old % len(kept)
    expected = (np.cumsum(kept) - 1)[old[kept[old]]]
    return new is not None and np.array_equal(expected, new % int(kept.sum()))


def _rank(position: int | None, kept: Bools) -> int:
    """The number of kept slots before a position. A negative position counts from the end; None is the beginning."""
    if position is None:
        return 0
    position = max(position + len(kept), 0) if position < 0 else position
    return int(kept[: min(position, len(kept))].sum())
