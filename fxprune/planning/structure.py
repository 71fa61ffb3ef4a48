"""The structure of a model, whatever its weights are: names, shapes, and the slots that are removed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools
from fxprune.errors import counted

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Coupled:
    """Removed channels that have slots in the same dimensions.

    channels: their number. members: these dimensions, (parameter or buffer, dimension). slots: a hash of their slots.
    """

    channels: int
    members: tuple[tuple[str, int], ...]
    slots: str

    def __str__(self) -> str:
        listed = ", ".join(f"{name}[{dim}]" for name, dim in self.members[:4])
        more = f" and {len(self.members) - 4} more" if len(self.members) > 4 else ""
        return f"{counted(self.channels, 'channel')} in {listed}{more}"


@dataclass(frozen=True)
class Structure:
    """Names, shapes, and the slots that are removed together. Weights, dtypes, devices and order do not count.

    shapes: of every parameter and every buffer in `state_dict`, and of the other buffers that a plan cuts.
    coupled: the channels that the plan removes; empty where that is not known (a plan put together from two).
    outside: the names of all buffers that `state_dict` leaves out; a model may have them or not.
    """

    shapes: Mapping[str, tuple[int, ...]]
    coupled: tuple[Coupled, ...] = field(default=())
    outside: tuple[str, ...] = field(default=())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, shapes and coupled channels."""
        shapes = sorted((name, list(shape)) for name, shape in self.shapes.items())
        coupled = sorted([c.channels, sorted(c.members), c.slots] for c in self.coupled)
        return hashlib.sha256(json.dumps([shapes, coupled]).encode()).hexdigest()

    def difference(self, other: Structure) -> tuple[str, str]:
        """The first difference, as a text for this one and one for the other; two empty texts if there is none."""
        for name, shape in self.shapes.items():
            if name not in other.shapes:
                return f'there is "{name}" of shape {shape}', "there is no such tensor"
            if other.shapes[name] != shape:
                return f'"{name}" has shape {shape}', f"it has shape {other.shapes[name]}"
        for name, shape in other.shapes.items():
            if name not in self.shapes:
                return f'there is no "{name}"', f"it has shape {shape}"
        if self.coupled and other.coupled:
            by_members = {frozenset(c.members): c for c in other.coupled}
            for coupled in self.coupled:
                there = by_members.get(frozenset(coupled.members))
                if there is None:
                    return f"there go {coupled}", _nearest(coupled, other.coupled)
                if there != coupled:
                    same = there.channels == coupled.channels
                    return f"there go {coupled}", "other slots go together" if same else f"there go {there}"
        return "", ""


def _nearest(coupled: Coupled, others: tuple[Coupled, ...]) -> str:
    """The channels among `others` that stand in one of the same dimensions."""
    found = (other for other in others if set(other.members) & set(coupled.members))
    other = next(found, None)
    return "none of them go" if other is None else f"there go {other}"


def shapes_of_model(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, and of the buffers that `state_dict` holds, under all their names."""
    return {name: tuple(t.shape) for name, t in _state(model)}


def _state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, tensor


def structure_of(findings: Findings, removed: Bools, names: Mapping[str, object]) -> Structure:
    """The structure of the analysed model, for the plan that removes these channels.

    removed: flags of the channels. names: the parameters and buffers that the plan cuts.
    """
    shapes = shapes_of_model(findings.model)
    outside = {n: tuple(t.shape) for n, t in findings.subject.tensors.items() if n not in shapes}
    shapes |= {name: shape for name, shape in outside.items() if name in names}
    coupled = _coupled(findings, removed, {name: i for i, name in enumerate(shapes)})
    return Structure(shapes, coupled, tuple(outside))


def _coupled(findings: Findings, removed: Bools, order: Mapping[str, int]) -> tuple[Coupled, ...]:
    """The removed channels, grouped by the dimensions in which they have slots.

    The slots of a channel become one number, the sum of hash(dimension) * hash(slot) modulo 2^64. A sum has no order,
    so the order of channels and dimensions, which may differ between two analyses, does not matter. order: name -> its
    place, for sorting.
    """
    if not removed.any():
        return ()
    s = findings.solution
    names = [_name(findings, number, order) for number in range(len(s.axes))]
    slots, dims = np.zeros(s.channels, dtype=np.uint64), np.zeros(s.channels, dtype=np.uint64)
    stands = list(s.slots_by_place(removed))
    for axes, channels, taken in stands:
        hashed = np.array([_hash(f"{name}[{dim}]") for name, dim in (names[n] for n in axes)]).sum()
        np.add.at(slots, channels, hashed * _mix(taken.astype(np.uint64)))
        dims[np.unique(channels)] += hashed
    members: dict[int, list[tuple[str, int]]] = {}
    for axes, channels, _ in stands:
        for footprint in np.unique(dims[channels]).tolist():
            members.setdefault(footprint, []).extend(names[n] for n in axes)
    gone = np.flatnonzero(removed)
    made = []
    for footprint, found in members.items():
        channels = gone[dims[gone] == np.uint64(footprint)]
        digest = hashlib.sha256(np.sort(slots[channels]).astype("<u8").tobytes()).hexdigest()[:16]
        made.append(Coupled(len(channels), tuple(sorted(found, key=lambda m: (order.get(m[0], -1), m))), digest))
    return tuple(sorted(made, key=lambda c: ([(order.get(n, -1), n, d) for n, d in c.members], c.slots)))


def _name(findings: Findings, number: int, order: Mapping[str, int]) -> tuple[str, int]:
    """The name and dimension of an axis, by its number; of several names the first in `order`."""
    axis = findings.solution.axes[number]
    names = findings.names_of(axis.parameter)
    return min(names, key=lambda name: (order.get(name, len(order)), name)), axis.dim


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _mix(x: Hashes) -> Hashes:
    """A hash of each number: the last step of splitmix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
