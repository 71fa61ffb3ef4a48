"""The tensors of the result: which numbers of which stored tensors make them up.

Where the config says the small model, each stored tensor stays under its name and loses what its parameters lose. Else
each parameter is one tensor under its own name, put together from its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels.groups import Bools, Ints
from fxprune.errors import FileError, PlanError
from fxprune.planning.combine import kept_flags, shapes_after
from fxprune.planning.plan import Plan
from fxprune.streaming.checkpoint import Stored
from fxprune.streaming.layout import StoredAxis, StoredPart

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Piece:
    """A box of a new tensor, cut from a stored one.

    picks: for each dimension of the stored tensor the indices that are taken, in the order of the new tensor; None for
    all. dims: the dimension of the new tensor for each of them, -1 if it has none there. begin: the first index of the
    box in each dimension of the new tensor. factors: dimension of the stored tensor, or None -> the factors of the
    indices that are taken.
    """

    stored: Stored
    picks: tuple[Ints | None, ...]
    dims: tuple[int, ...]
    begin: tuple[int, ...]
    factors: tuple[tuple[int | None, Floats], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is taken, in the dimensions of the stored tensor."""
        pairs = zip(self.stored.shape, self.picks, strict=True)
        return tuple(size if pick is None else len(pick) for size, pick in pairs)


@dataclass(frozen=True, eq=False)
class Output:
    """A tensor of the result. pieces: the boxes that make it up."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def bytes(self) -> int:
        """The size of its numbers."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class StayingSlots:
    """The slots of a plan's parameters that stay."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._known = plan, dict[str, dict[int, Bools]]()
        self.shapes = shapes_after(plan)

    def flags(self, parameter: str, dim: int) -> Bools | None:
        """Flags of the slots of a dimension, None if all stay."""
        if parameter not in self._known:
            shape = self.plan.known_structure("what stays").shapes.get(parameter, ())
            self._known[parameter] = kept_flags(self.plan, parameter, torch.Size(shape))
        return self._known[parameter].get(dim)

    def of_axis(self, part: StoredPart, axis: StoredAxis) -> Bools | None:
        """Flags of the indices of an axis. Raises `PlanError` for a block that would be cut in two."""
        flags = None if axis.dim is None else self.flags(part.parameter, axis.dim)
        if flags is None:
            return None
        stays = flags[axis.slots]
        if axis.block == 1:
            return stays
        begins = np.arange(0, len(stays), axis.block)
        some, every = np.logical_or.reduceat(stays, begins), np.logical_and.reduceat(stays, begins)
        if not np.array_equal(some, every):
            block = int(np.flatnonzero(some != every)[0])
            raise PlanError(
                f'the plan cuts a block of the packed tensor "{part.stored}" in two',
                at=f'"{part.parameter}" dimension {axis.dim}, slots {block * axis.block} to '
                f"{min((block + 1) * axis.block, len(stays)) - 1}",
                why=f"{axis.block} numbers have one scale, and some of them go",
                do=f"remove whole blocks of {axis.block}, or stream the checkpoint that was packed",
            )
        return np.asarray(every)

    def has(self, part: StoredPart) -> bool:
        """False for a part of which all goes, such as an expert."""
        for dim, index in part.fixed.items():
            flags = self.flags(part.parameter, dim)
            if flags is not None and not flags[index]:
                return False
        return True


def in_stored_names(tensors: Mapping[str, Stored], parts: Iterable[StoredPart], kept: StayingSlots) -> list[Output]:
    """The stored tensors, each without what its parameters lose. For a small model that its config says."""
    by_stored: dict[str, list[StoredPart]] = {}
    for part in parts:
        by_stored.setdefault(part.stored, []).append(part)
    numbered = {name: found[0].fixed for name, found in by_stored.items() if found[0].fixed}
    made = []
    for name, found in by_stored.items():
        stays = [kept.has(part) for part in found]
        if all(stays):
            made.append(_cut(tensors[name], _new_name(name, found[0], numbered, kept), found, kept))
        elif any(stays):
            raise PlanError(
                f'"{name}" of the checkpoint holds several parameters, of which some go as a whole',
                at=", ".join(f'"{part.parameter}"' for part in found[:4]),
                do="load the model and save it with save_original_format=False, then stream that directory",
            )
    return made


def _new_name(name: str, part: StoredPart, numbered: Mapping[str, Mapping[int, int]], kept: StayingSlots) -> str:
    """The name of a stored tensor whose name has the number of a module in a list, such as an expert.

    numbered: the stored tensors of this kind -> their indices in the parameter.
    """
    for dim, index in part.fixed.items():
        flags = kept.flags(part.parameter, dim)
        if flags is None:
            continue
        words = name.split(".")
        for position in (p for p, word in enumerate(words) if word == str(index)):
            others = (".".join([*words[:position], str(i), *words[position + 1 :]]) for i in range(len(flags)))
            if all(other in numbered and numbered[other].get(dim) == i for i, other in enumerate(others)):
                words[position] = str(_rank(flags, index))
                return ".".join(words)
        raise PlanError(
            f'it is not known which number in "{name}" is that of the module',
            at=f'"{part.parameter}" dimension {dim}',
            do="load the model and save it with save_original_format=False, then stream that directory",
        )
    return name


def _cut(stored: Stored, name: str, parts: Sequence[StoredPart], kept: StayingSlots) -> Output:
    """A stored tensor without removed slots. Raises `PlanError` where its parts lose different slots of a dimension."""
    flags: list[Bools | None] = [None] * len(stored.shape)
    for dim, size in enumerate(stored.shape):
        known = np.zeros(size, dtype=bool)
        for part in parts:
            axis = part.axes[dim]
            own, span = kept.of_axis(part, axis), slice(axis.start, axis.start + axis.count)
            before = flags[dim]
            if own is None and before is None:
                known[span] = True
                continue
            now = np.ones(size, dtype=bool) if before is None else before
            fresh = np.ones(axis.count, dtype=bool) if own is None else own
            if (known[span] & (now[span] != fresh)).any():
                raise PlanError(
                    f'"{stored.name}" of the checkpoint holds several parameters, which lose different slots',
                    at=", ".join(f'"{one.parameter}"' for one in parts[:4]),
                    why=f"they share dimension {dim} of it",
                    do="load the model and save it with save_original_format=False, then stream that directory",
                )
            now[span], known[span] = fresh, True
            flags[dim] = now
    picks = tuple(None if f is None or f.all() else np.flatnonzero(f) for f in flags)
    order = tuple(range(len(stored.shape)))
    piece = Piece(stored, picks, order, (0,) * len(order), _factors_of(parts, kept, stored, picks))
    return Output(name, stored.dtype, piece.shape, (piece,))


def _factors_of(
    parts: Sequence[StoredPart], kept: StayingSlots, stored: Stored, picks: Sequence[Ints | None]
) -> tuple[tuple[int | None, Floats], ...]:
    """The factors of a stored tensor: along each of its dimensions one for each index that is taken."""
    named = {part.parameter for part in parts}
    whole = 1.0
    along: dict[int, Floats] = {}
    for factor in kept.plan.factors:
        if factor.tensor not in named:
            continue
        for part in (one for one in parts if one.parameter == factor.tensor):
            dim = next((d for d, axis in enumerate(part.axes) if axis.dim == factor.dim), None)
            if factor.slots is None and len(named) == 1:
                whole *= factor.factor
                break
            if len(parts) == 1 and factor.dim in part.fixed and factor.slots is not None:
                whole *= factor.factor if part.fixed[factor.dim] in factor.slots else 1.0
                break
            if dim is None or part.axes[dim].block != 1:
                raise _no_factor(stored.name, factor.tensor)
            axis = part.axes[dim]
            numbers = along.setdefault(dim, np.ones(stored.shape[dim]))
            chosen = np.ones(axis.count, bool) if factor.slots is None else np.isin(axis.slots, factor.slots)
            numbers[axis.start : axis.start + axis.count][chosen] *= factor.factor
    made: list[tuple[int | None, Floats]] = [] if whole == 1 else [(None, np.array(whole))]
    made += [(dim, numbers if picks[dim] is None else numbers[picks[dim]]) for dim, numbers in along.items()]
    if made and not stored.dtype.is_floating_point:
        raise _no_factor(stored.name, next(iter(named)))
    return tuple(made)


def _no_factor(stored: str, parameter: str) -> PlanError:
    return PlanError(
        f'"{stored}" of the checkpoint cannot carry a factor of the plan',
        at=f'"{parameter}"',
        why="it is packed, or one of several parts of the parameter that the factor is of",
        do="stream the checkpoint that was packed, or remove whole heads",
    )


def in_parameter_names(
    tensors: Mapping[str, Stored], parts: Iterable[StoredPart], kept: StayingSlots, name_of: Callable[[str], str]
) -> list[Output]:
    """One tensor for each parameter. For a small model that no config says.

    name_of: the first of the names of a tied parameter; a second stored copy of one is left out.
    """
    by_parameter: dict[str, list[StoredPart]] = {}
    for part in parts:
        by_parameter.setdefault(part.parameter, []).append(part)
    made: dict[str, Output] = {}
    for parameter, found in by_parameter.items():
        name = name_of(parameter)
        if name not in made or name == parameter:
            made[name] = _joined(name, parameter, found, tensors, kept)
    return list(made.values())


def _joined(
    name: str, parameter: str, parts: Sequence[StoredPart], tensors: Mapping[str, Stored], kept: StayingSlots
) -> Output:
    """A parameter, put together from its parts."""
    dtypes = {tensors[part.stored].dtype for part in parts}
    if len(dtypes) > 1:
        raise FileError(
            f'the parts of "{parameter}" have different types',
            at=", ".join(sorted(map(str, dtypes))),
            why=f'"{parts[0].stored}" and others are one parameter of the model',
            do="load the model and save it, then stream that directory",
        )
    shape = kept.shapes[parameter]
    pieces = [_piece(part, tensors[part.stored], len(shape), kept) for part in parts if kept.has(part)]
    return Output(name, next(iter(dtypes)), shape, tuple(pieces))


def _piece(part: StoredPart, stored: Stored, ndim: int, kept: StayingSlots) -> Piece:
    picks: list[Ints | None] = []
    dims: list[int] = []
    begin = [0] * ndim
    for dim, index in part.fixed.items():
        begin[dim] = _rank(kept.flags(part.parameter, dim), index)
    for axis, size in zip(part.axes, stored.shape, strict=True):
        target = axis.dim
        if target is None:  # one index of the stored tensor, the whole of no dimension
            picks.append(np.arange(axis.start, axis.start + axis.count))
            dims.append(-1)
            continue
        flags = kept.of_axis(part, axis)
        taken = np.arange(axis.count) if flags is None else np.flatnonzero(flags)
        taken = taken[np.argsort(axis.slots[taken], kind="stable")]
        first = int(axis.slots[taken].min()) if len(taken) else 0
        begin[target] = _rank(kept.flags(part.parameter, target), first)
        indices = taken + axis.start
        picks.append(None if np.array_equal(indices, np.arange(size)) else indices)
        dims.append(target)
    return Piece(stored, tuple(picks), tuple(dims), tuple(begin), _factors_of([part], kept, stored, picks))


def _rank(flags: Bools | None, index: int) -> int:
    """The position of an index among those that stay."""
    return index if flags is None else int(flags[:index].sum())
