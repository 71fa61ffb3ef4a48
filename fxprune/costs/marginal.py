"""The cost of one channel, and the cost that a lock withholds: parameters and MACs, counted from the analysis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Contraction
from fxprune.channels.groups import Axis, Ints, Removal
from fxprune.channels.vector import Vector
from fxprune.costs.count import contractions, macs_of


@dataclass(frozen=True)
class ChannelCost:
    """The cost of some channels: parameters, and MACs of one forward, None where some are not counted."""

    params: int
    macs: int | None


def per_channel(findings: Findings) -> tuple[ChannelCost, ...]:
    """The cost of the first channel of each group: the difference to the model without that channel."""
    return _without(findings, [group.channels[:1] for group in findings.groups])


def all_but_one(findings: Findings) -> tuple[ChannelCost, ...]:
    """The cost of all channels but the first of each group.

    It is less than so many times the cost of one channel where a weight has the group in its rows and in its columns.
    """
    return _without(findings, [group.channels[1:] for group in findings.groups])


def _without(findings: Findings, chosen: Sequence[Ints]) -> tuple[ChannelCost, ...]:
    """The cost of some channels of each group: the difference to the model without them."""
    axes: dict[str, list[Axis]] = {}
    for axis in findings.axes:
        axes.setdefault(axis.parameter, []).append(axis)
    touching = _touching(findings)
    found = []
    for group, channels in zip(findings.groups, chosen, strict=True):
        gone = findings.solution.no_channel()
        gone[channels] = True
        removal = Removal(findings.solution, gone)
        params = 0
        for name in dict.fromkeys(m.parameter for m in group.members if isinstance(m.tensor, nn.Parameter)):
            sizes = list(findings.tensors[name].shape)
            for axis in axes[name]:
                sizes[axis.dim] = removal.count(axis.vector)
            params += findings.tensors[name].numel() - math.prod(sizes)
        found.append(ChannelCost(params, _saved(touching.get(group.number, ()), removal)))
    return tuple(found)


def _vectors(contraction: Contraction) -> Iterator[Vector]:
    """The dimensions that the number of multiply-adds depends on, each once."""
    every = (*contraction.inside, *(v for vectors in contraction.products or () for v in vectors))
    yield from dict.fromkeys(v.representative for v in every)


def _touching(findings: Findings) -> dict[int, list[Contraction]]:
    """The operations that multiply the channels of each group, by its number."""
    groups_of: dict[Vector, list[int]] = {}
    touching: dict[int, list[Contraction]] = {}
    s = findings.solution
    for contraction in contractions(findings):
        met: set[int] = set()
        for vector in _vectors(contraction):
            if vector not in groups_of:
                groups_of[vector] = s.groups_with(s.channels_in([vector]))
            met.update(groups_of[vector])
        for group in met:
            touching.setdefault(group, []).append(contraction)
    return touching


def _saved(touched: Iterable[Contraction], removal: Removal) -> int | None:
    """The multiply-adds that a removal saves in some operations, None if they are unknown."""
    total = 0
    for contraction in touched:
        before, after = macs_of(contraction), macs_of(contraction, removal)
        if before is None or after is None:
            return None
        total += before - after
    return total


def withheld(findings: Findings) -> dict[int, int | None]:
    """The most MACs that could be saved without each event, by its number; None if they are unknown."""
    locked_slots_in: dict[Vector, dict[int, int]] = {}
    result: dict[int, int | None] = {}
    for contraction in contractions(findings):
        for vector in _vectors(contraction):
            if vector not in locked_slots_in:
                locked_slots_in[vector] = findings.solution.locked_slots_in(vector)
        unknown = contraction.products is None or contraction.inside
        for event in {e for vector in _vectors(contraction) for e in locked_slots_in[vector]}:
            before = result.get(event, 0)
            saved = None if unknown else sum(_less(vs, locked_slots_in, event) for vs in contraction.products or ())
            result[event] = None if before is None or saved is None else before + saved
    return result


def _less(vectors: Iterable[Vector], locked_slots_in: dict[Vector, dict[int, int]], event: int) -> int:
    """The part of a product of dimensions that an event withholds: all slots, less the product without those it locks.

    locked_slots_in: dimension -> event -> the number of slots that it locks.
    """
    sizes = [(v.size, locked_slots_in[v.representative].get(event, 0)) for v in vectors]
    return math.prod(size for size, _ in sizes) - math.prod(size - held for size, held in sizes)
