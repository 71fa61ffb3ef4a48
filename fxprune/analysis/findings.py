"""The findings of an analysis: groups of channels, locked channels with reasons, and the graph that was walked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxprune.analysis.marked_integers import Setting, Sizing
from fxprune.analysis.members import Locked, Member
from fxprune.analysis.observed import Observed
from fxprune.analysis.tensor_table import TensorTable
from fxprune.capture.captured import Captured
from fxprune.capture.inputs import Inputs
from fxprune.capture.tensors import Tensors
from fxprune.channels.groups import Axis, Bools, Ints, Solution
from fxprune.channels.vector import Vector
from fxprune.ops import Event
from fxprune.ops.layers import known_output_dim


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Interchangeable channels: the same footprint, ranked against each other.

    name: the producer's module, or the parameter's name.
    kind: "channels"; where a dimension is a grid "heads" and "head width" (attention), or "blocks" and "block width".
    size: the number of channels. exact: True if removing one equals setting its slots to zero; `reasons` if not.
    channels: their numbers among all channels of the analysis, ascending.
    """

    _findings: Findings
    number: int

    @property
    def channels(self) -> Ints:
        """The numbers of the group's channels, ascending."""
        return self._findings.solution.in_group(self.number)

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.channels)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every parameter dimension the channels stand in, in the order of the walk."""
        tensors, found = self._findings.tensors, self._findings.solution.members(self.number)
        return tuple(Member(a.parameter, a.dim, tensors[a.parameter], index, slots) for a, index, slots in found)

    @cached_property
    def producer(self) -> Member:
        """The member that opens the channels: an output dimension of a weight, else the first member."""
        weights = [member for member in self.members if member.tensor.ndim > 1 and self.is_output(member)]
        return (weights or list(self.members))[0]

    def is_output(self, member: Member) -> bool:
        """True if a member is the output dimension of the layer that owns its parameter."""
        return self._findings.opens(member.parameter, member.dim)

    def owner(self, member: Member) -> nn.Module:
        """The module that a member's parameter is registered in."""
        return self._findings.owner(member.parameter)

    def layers_of(self, member: Member) -> list[str]:
        """The names of the layers that own a member's parameter; a tied one has several."""
        names = self._findings.names_of(member.parameter)
        return [name.rpartition(".")[0].split(".parametrizations.")[0] for name in names]

    @property
    def name(self) -> str:
        """The module that opens the channels, or the raw parameter."""
        parameter = self.producer.parameter
        module, _, leaf = parameter.rpartition(".")
        return module if module and leaf in ("weight", "bias") else parameter

    @property
    def kind(self) -> str:
        """ "channels"; of a grid "heads" and "head width", or "blocks" and "block width" where no attention runs."""
        s, producer = self._findings.solution, self.producer
        columns = s.channels_of(self._findings.axis_vector(producer.parameter, producer.dim))
        if len(columns) < 2:
            return "channels"
        heads = self._findings.heads
        if heads[self.channels].any():
            return "heads"
        if any(heads[column[column >= 0]].any() for column in columns):
            return "head width"
        return "blocks" if (columns[0] == self.channels[0]).any() else "block width"

    @property
    def key(self) -> str:
        """The group's name that no other has: `name:kind@parameter[dim]`, numbered where groups share even that."""
        return self._findings.keys[self.number]

    @property
    def exact(self) -> bool:
        """True if removing a channel equals setting its slots to zero."""
        return not self._findings.inexact[self.channels].any()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The operations that take another statistic when a channel of this group is removed."""
        return tuple(dict.fromkeys(str(event) for event in self._findings.marked_by(self.channels)))

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        members = ", ".join(f"{m.parameter}[{m.dim}]" for m in self.members[:4])
        more = f", ... {len(self.members) - 4} more" if len(self.members) > 4 else ""
        return f"Group({self.name!r}, {self.size} {self.kind}, {members}{more})"


@dataclass(frozen=True, eq=False)
class Subject:
    """The model that was analysed, its tensors, its graph, and the example inputs: the first, and `more`."""

    model: nn.Module
    tensors: Tensors
    captured: Captured
    inputs: Inputs
    more: tuple[Inputs, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """Groups of channels, locked channels with their reasons, and the graph they were found in.

    A frozen value: nothing in it changes, and the model that it was made from is only referred to. Functions that hold
    channels, or keep statistics as they were, return other findings.

    settings: what each integer in the attributes of a module counts.
    preserved: scope -> how its statistics go on counting the original width; None where none were asked to.
    """

    subject: Subject
    observed: Observed
    table: TensorTable
    solution: Solution
    settings: Mapping[Setting, Sequence[Sizing]]
    notes: tuple[str, ...]
    preserved: Mapping[str, Any] | None = None

    # -- parts that are asked for most --------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that was analysed."""
        return self.subject.model

    @property
    def captured(self) -> Captured:
        """The graph that was walked."""
        return self.subject.captured

    @property
    def inputs(self) -> Inputs:
        """The first example inputs."""
        return self.subject.inputs

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Every parameter, buffer and tensor constant, by its first name."""
        return self.table.by_name

    @property
    def aliases(self) -> Mapping[str, Sequence[str]]:
        """The other names of tied tensors, by their first one."""
        return self.table.aliases

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dimensions of tensors that may shrink, those of constants included."""
        return self.table.axes

    @property
    def events(self) -> tuple[Event, ...]:
        """The operations that lock channels or make their removal inexact, by number."""
        return self.observed.events

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of a tensor, by its first one."""
        return self.table.names_of(name)

    def first_name(self, name: str) -> str:
        """The first name of a tensor, by any of its names."""
        return self.table.first_name(name)

    # -- groups -------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group of removable channels, in the order in which the walk met them."""
        return tuple(Group(self, number) for number in range(self.solution.groups))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The unique name of each group: see `Group.key`."""
        parts = [f"{g.name}:{g.kind}@{g.producer.parameter}[{g.producer.dim}]" for g in self.groups]
        seen: Counter[str] = Counter()
        keys = []
        for part in parts:
            seen[part] += 1
            keys.append(part if seen[part] == 1 else f"{part}#{seen[part]}")
        return tuple(keys)

    @cached_property
    def inexact(self) -> Bools:
        """A flag per channel: its removal changes a statistic."""
        return self.solution.channels_in(mark.vector for mark in self.observed.marks)

    @cached_property
    def heads(self) -> Bools:
        """A flag per channel: it is a head of some attention."""
        return self.solution.channels_in(self.observed.heads)

    def marked_by(self, channels: Ints) -> Iterator[Event]:
        """The events that make removing any of `channels` inexact."""
        for mark in self.observed.marks:
            if self.solution.channels_in([mark.vector])[channels].any():
                yield self.events[mark.event]

    @cached_property
    def locked(self) -> tuple[Locked, ...]:
        """The locked channels, by the operation that locks them, most withheld parameters first."""
        found: dict[int, dict[tuple[str, int], int]] = {}
        for event, axis, count in self.solution.locked_slots():
            slots = found.setdefault(event, {})
            slots[axis.parameter, axis.dim] = slots.get((axis.parameter, axis.dim), 0) + count
        locked = [Locked(self.events[event], slots, self._elements(slots)) for event, slots in found.items()]
        return tuple(sorted(locked, key=lambda locked: -locked.parameters))

    def _elements(self, slots: Mapping[tuple[str, int], int]) -> int:
        tensors = ((self.tensors[name], dim, count) for (name, dim), count in slots.items())
        return sum(tensor.numel() // max(tensor.shape[dim], 1) * count for tensor, dim, count in tensors)

    def has_axis(self, parameter: str, dim: int) -> bool:
        """True if a parameter's dimension takes part in the groups."""
        return (parameter, dim) in self._vectors

    def axis_vector(self, parameter: str, dim: int) -> Vector:
        """The vector of a parameter's dimension in terms of free channels."""
        return self.solution.terms.resolve(self._vectors[parameter, dim])

    @cached_property
    def _vectors(self) -> dict[tuple[str, int], Vector]:
        return {(axis.parameter, axis.dim): axis.vector for axis in self.solution.axes}

    def opens(self, parameter: str, dim: int) -> bool:
        """True if a dimension is the output of the module that owns the parameter."""
        return dim == known_output_dim(self.owner(parameter), self.tensors[parameter].ndim)

    def owner(self, parameter: str) -> nn.Module:
        """The module that a parameter or buffer is registered in."""
        return self.captured.module.get_submodule(parameter.rpartition(".")[0])

    def __repr__(self) -> str:
        s = self.solution
        return f"{type(self).__name__}({type(self.model).__name__}: {s.channels} channels in {s.groups} groups)"
