"""The walk over a captured model, and what is read off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis.counter import Counter, Found
from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.hookable import hookable
from fxprune.analysis.marked_integers import Settings
from fxprune.analysis.observed import Contraction, Observation, Place
from fxprune.analysis.observer import Observer
from fxprune.analysis.tensor_table import TensorTable
from fxprune.capture.captured import Captured
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Scope, Scopes
from fxprune.capture.traced import module_of, source_of
from fxprune.capture.values import objects_in, outline, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Axis, solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.ops import Operand


class Analyzer:
    """The walk: the graph is run under the observing dispatch mode, parameters opened beforehand."""

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        inputs: Inputs,
        more: Sequence[Inputs],
        *,
        strict: bool,
    ) -> None:
        self.model, self.captured, self.inputs, self.more = model, captured, inputs, more
        self.terms = Terms()
        self.faker = Real() if captured.real else Faker()
        self.module = self.faker.module(captured.module)
        self.scopes = Scopes(self.module)
        self.observer = Observer(self.terms, self.scopes, strict=strict)
        self.settings = Settings(self.observer)
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        self.axes: list[tuple[torch.Tensor, list[Axis]]] = []
        self.constants = _constants(model, captured)
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}
        self.notes: list[str] = list(captured.notes)
        self.counted: list[Found] = []

    def run(self) -> Findings:
        """Walk once and read the result off."""
        self._open_parameters()
        self.settings.mark(self.module)
        for inputs in reversed((self.inputs, *self.more)):  # the first is walked last, and what it shows is kept
            values = self.captured.values(inputs)
            modes = (self.scopes.watching(), self.settings, self.observer)
            self.scopes.restart()
            with clean_caches(self.model):
                walk(self.captured.graph, self.module, self.faker, values, self._visit, modes)
        self._follow_index_lists()
        self._lock_unreached()
        self._note_unreached()
        return self._findings()

    def layers(self) -> Findings:
        """Every layer's outputs are channels of their own, to be put back by a hook; results of the model stay."""
        results = self._results()
        self._open_parameters()
        weights = {path: f"{path}.weight" for path, _ in hookable(self.captured.module)}
        opened = {f"{path}.{leaf}" for path in weights for leaf in ("weight", "bias")}
        held = self.observer.event("hooks", "layers are looked at one by one, so only their own outputs can go")
        vectors = {(a.parameter, a.dim): a.vector for _, axes in self.axes for a in axes}
        for (name, dim), vector in vectors.items():
            if name not in opened or dim:
                self.terms.lock(vector, held)
        output = self.observer.event("output", "output of the model")
        for path, weight in weights.items():
            if path in results and (weight, 0) in vectors:
                self.terms.lock(vectors[weight, 0], output)
            if (f"{path}.bias", 0) in vectors and (weight, 0) in vectors:
                self.terms.same(vectors[weight, 0], vectors[f"{path}.bias", 0])
        self.observations = {node.name: Observation() for node in self.captured.graph.nodes}
        self.observations["forward"].contractions.extend(
            self._scaled(*found, vectors.get((weights.get(found[0], ""), 0))) for found in self.counted
        )
        self.observer.used.update(id(fake) for fake, _ in self.axes)
        return self._findings()

    def _scaled(self, path: str, op: str, macs: int | None, rows: Vector | None) -> Contraction:
        """The multiply-adds of a layer, in proportion to its own outputs; those of other operations stay."""
        if macs is None:
            return Contraction(op, path, None)
        shares = (self.terms.fixed(macs),) if rows is None else (self.terms.fixed(macs // rows.size), rows)
        return Contraction(op, path, [shares])

    def _results(self) -> set[str]:
        """The layers whose output is a result of the model, as it is or seen in another shape."""
        layers = {path for path, _ in hookable(self.captured.module)}
        made: dict[int, tuple[str, torch.Tensor]] = {}  # holds the tensors, so that no address is used twice

        def leave(scope: Scope, args: Any, kwargs: Any, output: Any) -> None:
            if scope.name in layers:
                made.update((t.untyped_storage().data_ptr(), (scope.name, t)) for t in tensors_in(output))

        self.scopes.enter, self.scopes.leave = lambda scope: None, leave
        values = self.captured.values(self.inputs)
        visit = lambda node, execute: execute()  # noqa: E731
        counter = Counter(self.scopes)
        modes = (self.scopes.watching(), counter)
        results = walk(self.captured.graph, self.module, self.faker, values, visit, modes)
        self.counted = counter.found
        found = (made.get(tensor.untyped_storage().data_ptr()) for tensor in tensors_in(results))
        return {entry[0] for entry in found if entry is not None}

    def _findings(self) -> Findings:
        every = [a for fake, opened in self.axes if id(fake) in self.observer.used for a in opened]
        axes = [a for a in every if a.parameter not in self.constants]
        return Findings(
            subject=Subject(self.model, self.captured, self.inputs, tuple(self.more)),
            observed=self.observer.observed(self.nodes, self.observations),
            table=TensorTable(self.tensors, self.aliases, tuple(every)),
            solution=solve(self.terms, axes),
            settings=self.settings.found,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _open_parameters(self) -> None:
        """Fresh atoms for every dimension of every parameter, buffer and tensor constant, once per tensor."""
        first: dict[int, str] = {}
        for name, tensor in self.captured.tensors():
            if id(tensor) in first:
                self.aliases.setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            self.tensors[name] = tensor
            fake = self.faker.tensor(tensor)
            vectors = tuple(self.terms.fresh(size) for size in tensor.shape)
            value = tensor if not tensor.is_floating_point() and tensor.device.type != "meta" else None
            registered = name not in self.constants  # the masked reference zeroes parameters and buffers only
            self.observer.unread.open(fake, tensor)
            self.observer.bind(fake, Operand(vectors, tuple(registered or v.fixed for v in vectors), value))
            axes = [Axis(name, dim, v, tuple(tensor.shape)) for dim, v in enumerate(vectors) if not v.fixed]
            self.axes.append((fake, axes))

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.at(place)
        result = execute()
        if node.op == "placeholder":
            self._open_inputs(result)
        self.nodes[node.name] = outline(result, self.observer.peek)
        if node.op == "output":
            self._lock_results(result)
        return result

    def _open_inputs(self, result: Any) -> None:
        """Inputs are fixed, and their numbers are not known, also where they are real."""
        for tensor in tensors_in(result):
            fixed = tuple(self.terms.fixed(size) for size in tensor.shape)
            self.observer.bind(tensor, Operand(fixed, (True,) * len(fixed)))

    def _lock_results(self, result: Any) -> None:
        event = self.observer.event("output", "output of the model")
        for tensor in tensors_in(result):
            operand = self.observer.operand(tensor)
            for vector in (*operand.vectors, *((operand.labels,) if operand.labels is not None else ())):
                self.terms.lock(vector, event)
        for name in objects_in(result):
            self.notes.append(f"{name} in the result is taken for internal state: it has the widths of the model")

    def _lock_unreached(self) -> None:
        """Slots that only other inputs reach, such as positions beyond the length of the example, stay."""
        event = self.observer.event("slice", "the example inputs do not reach these slots")
        for fake, axes in self.axes:
            missed = self.observer.unread.missed(fake)
            for axis in axes:
                if axis.dim in missed:
                    self.terms.lock(axis.vector.take(np.flatnonzero(missed[axis.dim])), event)

    def _note_unreached(self) -> None:
        """In a graph, what forward does not reach is left out; a class keeps it, at its old width."""
        trained = ((n, t) for n, t in self.tensors.items() if isinstance(t, nn.Parameter))
        names = [name for name, t in trained if id(self.faker.tensor(t)) not in self.observer.used]
        if names and self.captured.keeps_class:
            listed = ", ".join(names[:4]) + (f", ... {len(names) - 4} more" if len(names) > 4 else "")
            also = "; if other inputs reach them, give such inputs with `also`" if self.captured.real else ""
            self.notes.append(f"not reached on the example inputs, and left as they are: {listed}{also}")

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


def _constants(model: nn.Module, captured: Captured) -> set[str]:
    """Tensors that are neither parameters nor buffers of the model: they shrink, no plan names them."""
    registered = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    registered |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name for name, _ in captured.tensors()} - registered
