"""The result of an analysis: groups of channels, locked channels with reasons, and the graph that was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxprune.analysis.members import Locked, Member, held_elements, role_of
from fxprune.analysis.observed import Mark, Observed, Walked
from fxprune.analysis.results import Results
from fxprune.analysis.tensor_table import TensorTable
from fxprune.analysis.uses import Uses
from fxprune.arguments import checks_arguments, checks_names
from fxprune.capture.captured import Captured
from fxprune.capture.inputs import Inputs
from fxprune.capture.methods import MethodCall
from fxprune.capture.modes import MODES
from fxprune.capture.output_paths import OutputPath
from fxprune.capture.tensors import Tensors
from fxprune.channels.groups import Axis, Bools, Ints, Solution
from fxprune.channels.vector import Vector
from fxprune.errors import InputError, counted, nearest
from fxprune.notebooks import html_table
from fxprune.ops import Event
from fxprune.ops.layers import known_output_dim, output_dim


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Channels with the same footprint, which are ranked against each other.

    For example, the outputs of a convolution, with their slots in its weight and bias, in the norm behind it and in the
    weight of the next convolution.
    """

    _findings: Findings
    number: int

    @property
    def channels(self) -> Ints:
        """The numbers of the group's channels among all channels of the analysis, ascending."""
        return self._findings.solution.in_group(self.number)

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.channels)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The dimensions of parameters and buffers in which the channels have slots, in the order of the tensors."""
        found = self._findings.solution.members(self.number)
        return tuple(self._member(axis, index, slots) for axis, index, slots in found)

    def _member(self, axis: Axis, index: Ints, slots: Ints) -> Member:
        findings = self._findings
        tensor, module = findings.tensors[axis.parameter], findings.layer(axis.parameter)
        role = role_of(module, axis.dim, tensor.ndim)
        return Member(axis.parameter, axis.dim, tensor, index, slots, module, role, self.size)

    @cached_property
    def producer(self) -> Member:
        """The member that the group is named after: the first output dimension of a weight, else the first member."""
        weights = [member for member in self.members if member.tensor.ndim > 1 and self.is_output(member)]
        return (weights or list(self.members))[0]

    @checks_arguments()
    def is_output(self, member: Member) -> bool:
        """True if a member is the output dimension of the layer that has the parameter."""
        return self._findings.is_output_dim(member.parameter, member.dim)

    @checks_arguments()
    def owner(self, member: Member) -> nn.Module:
        """The module that has a member's parameter."""
        return self._findings.owner(member.parameter)

    @checks_arguments()
    def layers_of(self, member: Member) -> list[str]:
        """The names of the layers that have a member's parameter; there are several for a tied one."""
        names = self._findings.names_of(member.parameter)
        return [name.rpartition(".")[0].split(".parametrizations.")[0] for name in names]

    @property
    def name(self) -> str:
        """The name of the producer's module; the name of its parameter if that is no `weight` or `bias`."""
        parameter = self.producer.parameter
        module, _, leaf = parameter.rpartition(".")
        return module if module and leaf in ("weight", "bias") else parameter

    @property
    def kind(self) -> str:
        """The kind of the channels.

        In a dimension that is a grid, such as heads times head width: "heads" or "head width" if an attention runs over
        it, else "blocks" or "block width". In any other dimension: "channels".
        """
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
        """A text that names this group and no other.

        It is `name:kind@parameter[dim]`, followed by `#2`, ... if repeated.
        """
        return self._findings.keys[self.number]

    @property
    def exact(self) -> bool:
        """True if removing a channel gives the same results as setting its slots to zero."""
        return not self._findings.inexact[self.channels].any()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The operations whose statistic changes when a channel of this group is removed, as texts.

        Empty if `exact`.
        """
        return tuple(dict.fromkeys(str(event) for event in self._findings.marked_by(self.channels)))

    def __len__(self) -> int:
        return self.size

    def _repr_html_(self) -> str:
        rows = [
            (m.parameter, str(m.dim), m.role, " x ".join(map(str, m.tensor.shape)), str(len(m.slots)))
            for m in self.members
        ]
        title = f"{self.name}: {self.size} {self.kind}, {'exact' if self.exact else 'not exact'}"
        return html_table(title, ("tensor", "dim", "role", "shape", "slots"), rows, right=(1, 3, 4))

    def __repr__(self) -> str:
        members = ", ".join(f"{m.parameter}[{m.dim}]" for m in self.members[:4])
        more = f", ... {len(self.members) - 4} more" if len(self.members) > 4 else ""
        return f"Group({self.name!r}, {self.size} {self.kind}, {members}{more})"


@dataclass(frozen=True, eq=False)
class Subject:
    """The input of an analysis: a model, its tensors, its graph, the first example inputs and `more` of them.

    outputs: the paths to the parts of the result that count as outputs, as the user gives them; None for all.
    methods: calls of other methods than forward.
    """

    model: nn.Module
    tensors: Tensors
    captured: Captured
    inputs: Inputs
    more: tuple[Inputs, ...] = ()
    outputs: tuple[OutputPath, ...] | None = None
    methods: tuple[MethodCall, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """Groups of channels, locked channels with their reasons, and the graph in which they were found.

    The value is frozen. Functions that lock channels or preserve statistics return new findings. The model is referred
    to and never changed.

    subject: the model and the example inputs.
    observed: the operations of the run.
    table: the tensors of the model, and their dimensions with vectors.
    solution: channels and groups as arrays.
    uses: the places where forward uses integers from attributes of modules, and sizes of tensors.
    notes: sentences for the reader of the record.
    preserved: scope -> how the small model preserves the statistics there; None without `norms="preserve"`.
    results: the tensors in the result of the forward, and which of them count as outputs.
    config: the config that has to say what is removed (`fxprune.configs.Config`); None without `uniform="config"`.
    state: the names of the tensors that forward has written in some run.
    """

    subject: Subject
    observed: Observed
    table: TensorTable
    solution: Solution
    uses: Uses
    notes: tuple[str, ...]
    preserved: Mapping[str, Any] | None = None
    results: Results = field(default_factory=Results)
    config: Any = None
    state: frozenset[str] = frozenset()

    # -- parts of the parts -------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that was analysed."""
        return self.subject.model

    @property
    def captured(self) -> Captured:
        """The captured model that was run."""
        return self.subject.captured

    @property
    def inputs(self) -> Inputs:
        """The first example inputs."""
        return self.subject.inputs

    @property
    def norms(self) -> str:
        """The norms of the analysis: "preserve", or "kept"."""
        return "kept" if self.preserved is None else "preserve"

    @property
    def walked(self) -> tuple[Walked, ...]:
        """The run on the first example inputs in the mode of the model, then the one in the other mode, then methods.

        There is none in the other mode if no code of the model reads its mode, and if it raises there, which `notes`
        say.
        """
        return (self.observed.main, *self.observed.others)

    @property
    def runs(self) -> tuple[Walked, ...]:
        """Every run: the main one, those on the further example inputs, and the others; see `Walked.again`."""
        return (self.observed.main, *self.observed.more, *self.observed.others)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which the model was analysed, the one in which it was given first: "evaluation", "training"."""
        return tuple(dict.fromkeys(MODES[walked.training] for walked in self.walked))

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
        """The dimensions of parameters, buffers and constants that may shrink, with their vectors."""
        return self.table.axes

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that lock channels or make their removal inexact. The number of an event is its position."""
        return self.observed.events

    @checks_arguments()
    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of a tensor, by its first one."""
        return self.table.names_of(name)

    @checks_arguments()
    def first_name(self, name: str) -> str:
        """The first name of a tensor, by any of its names."""
        return self.table.first_name(name)

    # -- groups -------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups of channels that can be removed, in the order of the tensors in which they have slots."""
        return tuple(Group(self, number) for number in range(self.solution.groups))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each group: see `Group.key`."""
        parts = [f"{g.name}:{g.kind}@{g.producer.parameter}[{g.producer.dim}]" for g in self.groups]
        seen: Counter[str] = Counter()
        keys = []
        for part in parts:
            seen[part] += 1
            keys.append(part if seen[part] == 1 else f"{part}#{seen[part]}")
        return tuple(keys)

    @cached_property
    def inexact(self) -> Bools:
        """Flags, one per channel: True if removing it changes a statistic."""
        return self.solution.channels_in(mark.vector for mark in self.observed.marks)

    @cached_property
    def heads(self) -> Bools:
        """Flags, one per channel: True if it is a head of an attention."""
        return self.solution.channels_in(self.observed.heads)

    @checks_names
    def marked_by(self, channels: Ints) -> Iterator[Event]:
        """The events that make removing some of `channels` inexact. They may repeat."""
        yield from (self.events[mark.event] for mark in self.marks_of(channels))

    @checks_names
    def marks_of(self, channels: Ints) -> Iterator[Mark]:
        """The statistics that change when some of `channels` are removed."""
        for mark in self.observed.marks:
            if self.solution.channels_in([mark.vector])[channels].any():
                yield mark

    @cached_property
    def locked(self) -> tuple[Locked, ...]:
        """The locked channels, one entry per event, the one that withholds most parameters first."""
        found: dict[int, dict[tuple[str, int], int]] = {}
        for event, axis, count in self.solution.locked_slots():
            slots = found.setdefault(event, {})
            slots[axis.parameter, axis.dim] = slots.get((axis.parameter, axis.dim), 0) + count
        locked = [Locked(self.events[event], slots, self._elements(slots)) for event, slots in found.items()]
        return tuple(sorted(locked, key=lambda locked: -locked.parameters))

    def _elements(self, slots: Mapping[tuple[str, int], int]) -> int:
        held = {key: count for key, count in slots.items() if isinstance(self.tensors[key[0]], nn.Parameter)}
        return held_elements(held, {name: self.tensors[name].shape for name, _ in held})

    @checks_arguments()
    def has_axis(self, parameter: str, dim: int) -> bool:
        """True if a dimension of a parameter can have channels."""
        return (parameter, dim) in self._vectors

    @checks_arguments()
    def reads(self, name: str) -> bool:
        """True if the forward reads a tensor, by its first name."""
        return any(axis.parameter == name for axis in self.axes)

    @checks_arguments()
    def axis_vector(self, parameter: str, dim: int) -> Vector:
        """The vector of a parameter's dimension, resolved: see `Terms.resolve`."""
        if (parameter, dim) not in self._vectors:
            known = [f"{name}[{dim}]" for name, dim in self._vectors]
            raise InputError(
                f"{parameter}[{dim}] is no dimension with channels", do=nearest(f"{parameter}[{dim}]", known)
            )
        return self.solution.terms.resolve(self._vectors[parameter, dim])

    @cached_property
    def _vectors(self) -> dict[tuple[str, int], Vector]:
        return {(axis.parameter, axis.dim): axis.vector for axis in self.solution.axes}

    @checks_arguments()
    def is_output_dim(self, parameter: str, dim: int) -> bool:
        """True if a dimension is the output dimension of the layer that a parameter belongs to."""
        return dim == known_output_dim(self.layer(parameter), self.tensors[self.first_name(parameter)].ndim)

    @checks_names
    def dim_of_outputs(self, parameter: str) -> int:
        """The output dimension of a parameter's layer; the first one of a parameter whose layer is not known."""
        return output_dim(self.layer(parameter), self.tensors[self.first_name(parameter)].ndim)

    @checks_arguments()
    def owner(self, parameter: str) -> nn.Module:
        """The module that has a parameter or buffer."""
        self._check_known(parameter)
        return self.captured.module.get_submodule(parameter.rpartition(".")[0])

    @checks_arguments()
    def layer(self, parameter: str) -> nn.Module:
        """The layer that a parameter belongs to: its owner, or the layer whose weight a parametrization makes of it."""
        self._check_known(parameter)
        owner = f".{parameter}".rpartition(".")[0].partition(".parametrizations.")[0]
        try:
            return self.model.get_submodule(owner[1:])
        except AttributeError:  # a constant of the graph
            return self.owner(parameter)

    def _check_known(self, parameter: str) -> None:
        if self.first_name(parameter) not in self.tensors:
            raise InputError(f'the model has no tensor "{parameter}"', do=nearest(parameter, self.tensors))

    def __repr__(self) -> str:
        s = self.solution
        size = f"{counted(s.channels, 'channel')} in {counted(s.groups, 'group')}"
        return f"{type(self).__name__}({type(self.model).__name__}: {size})"
