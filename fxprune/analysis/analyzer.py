"""The walk over a captured model: its graph runs once per example input, and an `Observer` sees every operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.marked_integers import Settings
from fxprune.analysis.observed import Observation, Place
from fxprune.analysis.opened import Opened
from fxprune.capture.process_state import clean_caches
from fxprune.capture.traced import module_of, source_of
from fxprune.capture.values import map_tensors, objects_in, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.vector import Vector
from fxprune.ops import Operand


class Analyzer:
    """One walk over a model. Use it once: make it, then call `run`."""

    def __init__(self, subject: Subject, *, strict: bool) -> None:
        self.subject = subject
        self.opened = Opened(subject, strict=strict)
        self.terms, self.observer = self.opened.terms, self.opened.observer
        self.settings = Settings(self.observer)
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}
        self.notes: list[str] = list(subject.captured.notes)

    def run(self) -> Findings:
        """Run the model on all example inputs, and return the findings.

        Raises `CaptureError` if the forward raises, `RuleError` under `strict` for an operation without a rule.
        """
        opened, captured = self.opened, self.subject.captured
        self.settings.mark(opened.module)
        for inputs in reversed(
            (self.subject.inputs, *self.subject.more)
        ):  # what is kept of a node is from the last run
            values = captured.values(inputs)
            modes = (opened.scopes.watching(), self.settings, self.observer)
            opened.scopes.restart()
            with clean_caches(self.subject.model):
                walk(captured.graph, opened.module, opened.faker, values, self._visit, modes)
        self._follow_index_lists()
        self._lock_unread()
        self._note_unused()
        return opened.findings(self.nodes, self.observations, self.settings.found, self.notes)

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.begin_node(place)
        result = execute()
        if node.op == "placeholder":
            self._open_inputs(result)
        self.nodes[node.name] = map_tensors(result, self.observer.peek)
        if node.op == "output":
            self._lock_results(result)
        return result

    def _open_inputs(self, result: Any) -> None:
        """Give the inputs fixed vectors. Their numbers count as unknown, even if they are real."""
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

    def _follow_index_lists(self) -> None:
        """Unify the dimensions that are indexed by the same tensor of positions, since it has one renumbering only.

        If their sizes differ, both are locked.
        """
        seen: dict[int, Vector] = {}
        for tensor, vector in self.observer.renumbered:
            before = seen.setdefault(id(tensor), vector)
            if before.size == vector.size:
                self.terms.same(before, vector)
            else:
                event = self.observer.event("index", "one list of positions indexes dimensions of different sizes")
                self.terms.lock(before, event)
                self.terms.lock(vector, event)

    def _lock_unread(self) -> None:
        """Lock slots that the example inputs do not read, such as positions beyond their length."""
        event = self.observer.event("slice", "the example inputs do not reach these slots")
        for fake, axes in self.opened.axes:
            missed = self.observer.unread.missed(fake)
            for axis in axes:
                if axis.dim in missed:
                    self.terms.lock(axis.vector.take(np.flatnonzero(missed[axis.dim])), event)

    def _note_unused(self) -> None:
        """Note the parameters that forward does not read, if the small model keeps them at their old width.

        A `GraphModule` leaves them out; a model that keeps its class does not.
        """
        names, captured = self.opened.unused_parameters(), self.subject.captured
        if names and captured.keeps_class:
            listed = ", ".join(names[:4]) + (f", ... {len(names) - 4} more" if len(names) > 4 else "")
            also = "; if other inputs reach them, give such inputs with `also`" if captured.real else ""
            self.notes.append(f"not reached on the example inputs, and left as they are: {listed}{also}")
