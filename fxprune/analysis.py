"""One walk over the graph on fake tensors: rules are applied, channels and groups read off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.fake import Faker
from fxprune.capture.inputs import Inputs, devices, for_placeholders, normalize
from fxprune.capture.observe import Observation, Observer, Place
from fxprune.capture.trace import module_of, source_of, trace
from fxprune.channels.groups import Axis, Bools, Ints, Solution, solve
from fxprune.channels.terms import Terms, Vector
from fxprune.errors import CaptureError, FxpruneError
from fxprune.rules import Event, Operand


@dataclass(frozen=True)
class Member:
    """One dimension of a parameter or buffer in which a group's channels have slots.

    index: for each of its slots the channel (0 .. size - 1) of the group it goes with, ascending by slot.
    slots: the slots, same length; a channel of a flattened C x H x W input has H * W of them.
    """

    parameter: str
    dim: int
    tensor: torch.Tensor
    index: Ints
    slots: Ints

    def per_channel(self, values: torch.Tensor, size: int) -> torch.Tensor:
        """Sum `values` (one per index of the dimension) over the slots of each of the group's `size` channels."""
        index = torch.from_numpy(self.index).to(values.device)
        slots = torch.from_numpy(self.slots).to(values.device)
        return values.new_zeros(size).index_add_(0, index, values[slots])


class Group:
    """Interchangeable channels: the same footprint, ranked against each other.

    name: the producer's module, or the parameter's name.
    kind: "channels", or "blocks" and "block width" where a dimension is a grid (conv groups, heads).
    size: how many channels; `exact`: whether removing one equals setting its slots to zero; `reasons` if not.
    """

    def __init__(self, analysis: Analysis, number: int) -> None:
        self._analysis = analysis
        self.number = number
        self.channels = analysis.solution.by_group[number]
        self.size = len(self.channels)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every parameter dimension the channels stand in, in the order of the walk."""
        s = self._analysis.solution
        entries = s.entries(self.number)
        local = np.searchsorted(self.channels, s.channel[entries])
        members = []
        for chosen in _runs(s.axis[entries]):
            axis = s.axes[s.axis[entries[chosen[0]]]]
            tensor = self._analysis.tensors[axis.parameter]
            members.append(Member(axis.parameter, axis.dim, tensor, local[chosen], s.slot[entries[chosen]]))
        return tuple(members)

    @cached_property
    def producer(self) -> Member:
        """The member that opens the channels: an output dimension of a weight, else the first member."""
        weights = [m for m in self.members if m.tensor.ndim > 1 and self._analysis.opens(m.parameter, m.dim)]
        return (weights or list(self.members))[0]

    @property
    def name(self) -> str:
        """The module that opens the channels, or the raw parameter."""
        parameter = self.producer.parameter
        module, _, leaf = parameter.rpartition(".")
        return module if module and leaf in ("weight", "bias") else parameter

    @property
    def kind(self) -> str:
        """ "channels"; of a grid "blocks" (its rows) or "block width" (its columns)."""
        s, producer = self._analysis.solution, self.producer
        if len(self._analysis.axis_vector(producer.parameter, producer.dim).columns) < 2:
            return "channels"
        entries = s.entries(self.number)
        here = [s.axes[a].parameter == producer.parameter and s.axes[a].dim == producer.dim for a in s.axis[entries]]
        return "blocks" if s.column[entries][here].min() == 0 else "block width"

    @property
    def exact(self) -> bool:
        """Whether removing a channel equals setting its slots to zero."""
        return not self._analysis.inexact[self.channels].any()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which operations change a statistic when a channel of this group goes."""
        return tuple(dict.fromkeys(_say(e) for e in self._analysis.marked_by(self.channels)))

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        members = ", ".join(f"{m.parameter}[{m.dim}]" for m in self.members[:4])
        more = f", ... {len(self.members) - 4} more" if len(self.members) > 4 else ""
        return f"Group({self.name!r}, {self.size} {self.kind}, {members}{more})"


@dataclass(frozen=True)
class Locked:
    """Parameter dimensions whose slots an operation holds back.

    slots: (parameter, dim) -> how many slots. parameters: how many elements those slots carry, at most.
    """

    event: Event
    slots: Mapping[tuple[str, int], int]
    parameters: int

    def __str__(self) -> str:
        held = ", ".join(f"{name}[{dim}]" for name, dim in list(self.slots)[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"{_say(self.event)}: holds {held}{more}"


class Analysis:
    """What `analyze` found: groups of channels, locked channels with their reasons, and the graph it looked at.

    Frozen in spirit: nothing in it changes, and the model it was made from is only referred to.
    """

    def __init__(
        self,
        model: nn.Module,
        graph_module: fx.GraphModule,
        inputs: Inputs,
        solution: Solution,
        observer: Observer,
        nodes: dict[str, Any],
        observations: dict[str, Observation],
        tensors: dict[str, torch.Tensor],
        aliases: dict[str, list[str]],
        unused: list[str],
    ) -> None:
        self.model = model
        self.graph_module = graph_module
        self.inputs = inputs
        self.solution = solution
        self.nodes = nodes
        self.observations = observations
        self.tensors = tensors
        self.aliases = aliases
        self.unused = unused
        self.events = observer.events
        self.vectors = list(observer.vectors.values())
        self.renumbered = {id(t): v for t, v in observer.renumbered}
        self._marks = observer.marks
        self._axes = {(a.parameter, a.dim): a.vector for a in solution.axes}

    # -- groups -------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group of removable channels, in the order in which the walk met them."""
        return tuple(Group(self, number) for number in range(self.solution.groups))

    @cached_property
    def inexact(self) -> Bools:
        """Per channel, whether its removal changes a statistic."""
        flags = np.zeros(self.solution.channels, dtype=bool)
        for _, vector in self._marks:
            for channels in self.solution.channels_of(vector):
                flags[channels[channels >= 0]] = True
        return flags

    def marked_by(self, channels: Ints) -> Iterator[Event]:
        """The events that make removing any of `channels` inexact."""
        wanted = np.zeros(self.solution.channels, dtype=bool)
        wanted[channels] = True
        for event, vector in self._marks:
            if any(wanted[c[c >= 0]].any() for c in self.solution.channels_of(vector)):
                yield self.events[event]

    @cached_property
    def locked(self) -> tuple[Locked, ...]:
        """What is held back, by the operation that holds it, most withheld parameters first."""
        found: dict[int, dict[tuple[str, int], int]] = {}
        for event, axis, count in self.solution.held:
            a = self.solution.axes[axis]
            place = found.setdefault(event, {})
            place[a.parameter, a.dim] = place.get((a.parameter, a.dim), 0) + count
        result = []
        for event, slots in found.items():
            elements = sum(
                self.tensors[p].numel() // max(self.tensors[p].shape[d], 1) * n for (p, d), n in slots.items()
            )
            result.append(Locked(self.events[event], slots, elements))
        return tuple(sorted(result, key=lambda locked: -locked.parameters))

    def axis_vector(self, parameter: str, dim: int) -> Vector:
        """The vector of a parameter's dimension in terms of free channels."""
        return self.solution.terms.resolve(self._axes[parameter, dim])

    def opens(self, parameter: str, dim: int) -> bool:
        """Whether a dimension is the output of the module that owns the parameter."""
        return dim == output_dim(self.owner(parameter), self.tensors[parameter].ndim)

    def owner(self, parameter: str) -> nn.Module:
        """The module that a parameter or buffer is registered in."""
        return self.graph_module.get_submodule(parameter.rpartition(".")[0])

    def plan(self, ratio: float | None = None, **options: Any) -> Any:
        """What goes: see `fxprune.planning.plan.make_plan` for all options.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        from fxprune.planning.plan import make_plan

        return make_plan(self, ratio=ratio, **options)

    def report(self) -> str:
        """Groups and locked channels as a table of plain text."""
        from fxprune.report import analysis_report

        return analysis_report(self)

    def __repr__(self) -> str:
        return (
            f"Analysis({type(self.model).__name__}: {self.solution.channels} channels in {self.solution.groups} groups)"
        )


def output_dim(module: nn.Module, ndim: int) -> int | None:
    """The dimension of a module's weight that counts its output channels; None for a raw parameter."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 1 if ndim > 1 else 0
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 1
    return 0 if type(module).__module__.startswith("torch.nn") else None


def analyze(model: nn.Module, example_inputs: Any, *, strict: bool = False) -> Analysis:
    """Find out which channels of `model` belong together.

    Reads the model, changes nothing. Traces it unless it is a `torch.fx.GraphModule` already, and runs the graph
    once on fake tensors, so that the cost does not depend on the size of the weights.

    Args:
        model: any module that `torch.fx` traces, or a traced one.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        strict: raise `RuleError` at an operation without a rule instead of keeping its channels.

    Raises:
        InputError: the inputs do not fit. CaptureError: the model cannot be traced or its forward raises.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> fxprune.analyze(net, torch.randn(1, 4)).groups
    (Group('0', 8 channels, 0.weight[0], 0.bias[0], 2.weight[1]),)
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    inputs = normalize(example_inputs)
    devices(model, inputs)
    return Analyzer(model, trace(model), inputs, strict=strict).run()


class Analyzer:
    """The walk: `torch.fx.Interpreter` under the observing dispatch mode, parameters opened beforehand."""

    def __init__(self, model: nn.Module, graph_module: fx.GraphModule, inputs: Inputs, *, strict: bool) -> None:
        self.model, self.graph_module, self.inputs = model, graph_module, inputs
        self.terms = Terms()
        self.observer = Observer(self.terms, strict=strict)
        self.faker = Faker()
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        self.axes: list[tuple[torch.Tensor, list[Axis]]] = []
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}

    def run(self) -> Analysis:
        """Walk once and read the result off."""
        module = self.faker.module(self.graph_module)
        self._open_parameters()
        values = for_placeholders(self.graph_module.graph, self.inputs)
        walk_on_fakes(self.graph_module.graph, module, self.faker, values, self._visit, self.observer)
        self._follow_index_lists()
        axes = [a for fake, opened in self.axes if id(fake) in self.observer.used for a in opened]
        used = {a.parameter for a in axes}
        unused = [name for fake, opened in self.axes for name in {a.parameter for a in opened} if name not in used]
        return Analysis(
            self.model,
            self.graph_module,
            self.inputs,
            solve(self.terms, axes),
            self.observer,
            self.nodes,
            self.observations,
            self.tensors,
            self.aliases,
            unused,
        )

    def _open_parameters(self) -> None:
        """Fresh atoms for every dimension of every parameter, buffer and tensor constant, once per tensor."""
        first: dict[int, str] = {}
        for name, tensor in named_tensors(self.graph_module):
            if id(tensor) in first:
                self.aliases.setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            self.tensors[name] = tensor
            fake = self.faker.tensor(tensor)
            vectors = tuple(self.terms.fresh(size) for size in tensor.shape)
            value = tensor if not tensor.is_floating_point() and tensor.device.type != "meta" else None
            self.observer.bind(fake, Operand(vectors, (True,) * len(vectors), value))
            axes = [Axis(name, dim, v, tuple(tensor.shape)) for dim, v in enumerate(vectors) if v.columns]
            self.axes.append((fake, axes))

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.at(place)
        result = execute()
        self.nodes[node.name] = pytree.tree_map_only(torch.Tensor, self.observer.operand, result)
        if node.op == "output":
            event = self.observer.event("output", "output of the model")
            for operand in pytree.tree_leaves(self.nodes[node.name]):
                if isinstance(operand, Operand):
                    for vector in operand.vectors:
                        self.terms.lock(vector, event)
        return result

    def _follow_index_lists(self) -> None:
        """A buffer of positions used on two dimensions must be renumbered alike for both."""
        seen: dict[int, Vector] = {}
        for tensor, vector in self.observer.renumbered:
            before = seen.setdefault(id(tensor), vector)
            if before.size == vector.size:
                self.terms.same(before, vector)
            else:
                event = self.observer.event("index", "one list of positions indexes dimensions of different sizes")
                self.terms.lock(before, event)
                self.terms.lock(vector, event)


def named_tensors(graph_module: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and the plain tensor attributes that the graph reads, by dotted name, twins included."""
    seen = set()
    for name, tensor in [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]:
        seen.add(name)
        yield name, tensor
    for node in graph_module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = fetch(graph_module, name)
        if name not in seen and isinstance(value, torch.Tensor):
            seen.add(name)
            yield name, value


def fetch(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


class _Walk(fx.Interpreter):
    def __init__(self, graph: fx.Graph, module: nn.Module, visit: Callable[[fx.Node, Callable[[], Any]], Any]) -> None:
        super().__init__(module, graph=graph)
        self.visit = visit
        self.node: fx.Node | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return self.visit(n, lambda: super(_Walk, self).run_node(n))


def walk_on_fakes(
    graph: fx.Graph,
    module: nn.Module,
    faker: Faker,
    values: list[Any],
    visit: Callable[[fx.Node, Callable[[], Any]], Any],
    mode: Any = None,
) -> Any:
    """Run a graph node by node on fake tensors: `visit(node, execute)` for each, in order.

    Raises `CaptureError` with node, module and source line where the forward raises.
    """
    walk = _Walk(graph, module, visit)
    fakes = faker.tree(values)
    try:
        with torch.no_grad(), faker.mode:
            if mode is None:
                return walk.run(*fakes)
            with mode:
                return walk.run(*fakes)
    except FxpruneError:
        raise
    except Exception as error:
        node = walk.node
        where = f"{module_of(node) or 'the model'} ({source_of(node)}), node %{node.name}" if node else "the model"
        raise CaptureError(
            "the model's forward raises on fake tensors",
            at=where,
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            do="check that the model runs on these example inputs",
        ) from error


def _runs(keys: Ints) -> list[Ints]:
    """Positions of equal keys together, in the order of first appearance."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return list(np.split(order, cuts))


def _say(event: Event) -> str:
    where = event.module or "the model"
    return f"{event.op} in {where} ({event.source}): {event.why}"
