"""The walks over a captured model: its graph runs once per example input, and an `Observer` sees every operation.

Where code of the model reads its mode, the graph runs in the other mode too, so that what only training reaches is
analysed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx

from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.marking import Settings
from fxprune.analysis.observed import Observation, Place, Walked
from fxprune.analysis.opened import Opened
from fxprune.analysis.results import Results
from fxprune.capture.inputs import Inputs
from fxprune.capture.modes import MODES, doubled, modules_reading_training, random_decisions, set_mode
from fxprune.capture.output_paths import Outputs, tensors_that_count
from fxprune.capture.places import module_of, source_of
from fxprune.capture.process_state import no_caches
from fxprune.capture.values import map_tensors, objects_in, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.ops import Operand


class Analyzer:
    """The walks over a model. Use it once: make it, then call `run`."""

    def __init__(self, subject: Subject, *, strict: bool) -> None:
        self.subject = subject
        self.opened = Opened(subject, strict=strict)
        self.terms, self.observer = self.opened.terms, self.opened.observer
        self.settings = Settings(self.observer)
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}
        self.notes: list[str] = list(subject.captured.notes)
        self.results: list[tuple[Any, int]] = []
        self.outputs: Outputs | None = None

    def run(self) -> Findings:
        """Run the model on all example inputs, and return the findings.

        What is kept of a node is from the run on the first example inputs. So is the first call of a module, unless
        only another run reaches that module. The run in the other mode comes last.

        Raises `CaptureError` if the forward raises, `RuleError` under `strict` for an operation without a rule.
        """
        subject = self.subject
        self.settings.mark(self.opened.module)
        for inputs in reversed((subject.inputs, *subject.more)):
            self._walk(inputs)
        results = self._lock_results()
        nodes, observations = self.nodes, self.observations
        other_mode = self._walk_other_mode()
        self.observer.begin_run()
        self._follow_index_lists()
        self._lock_unread()
        self._note_unused()
        return self.opened.findings(
            nodes, observations, self.settings.uses(self.opened.unread_vectors()), self.notes, results, other_mode
        )

    def _walk(self, inputs: Inputs, *, when: str = "") -> None:
        """Run the model that is open. `nodes` and `observations` are those of this run afterwards."""
        opened, captured = self.opened, self.subject.captured
        self.nodes, self.observations = {}, {}
        self.observer.begin_run(when)
        decisions = (random_decisions(),) if when else ()
        modes = (*decisions, opened.scopes.watching(), self.settings, self.observer)
        with no_caches(self.subject.model) as opened.scopes.between_modules:
            walk(captured.graph, opened.module, opened.faker, captured.values(inputs), self._visit, modes)

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.begin_node(place)
        result = execute()
        if node.op == "placeholder":
            self._open_inputs(result)
        self.nodes[node.name] = map_tensors(result, self.observer.peek)
        if node.op == "output":
            self._keep_result(self.subject.captured.graph.process_outputs(result))
        return result

    # -- the other mode -----------------------------------------------------------------------------------

    def _walk_other_mode(self) -> Walked | None:
        """Run the model in the mode in which it was not given, on the first inputs on which its forward runs there.

        None if no code of the model reads its mode, or if forward raises on all inputs: then a note says so.
        """
        subject, captured = self.subject, self.subject.captured
        training, reading = not subject.model.training, modules_reading_training(subject.model)
        if not reading:
            return None
        if captured.front_end.fixes_mode:
            self.notes.append(
                f"the graph is that of {MODES[not training]} mode: what {_listed(reading)} would do otherwise in "
                f"{MODES[training]} mode is not in it"
            )
            return None
        if not modules_reading_training(captured.module):
            return None
        errors = []
        for inputs in (subject.inputs, *subject.more):
            for given in (inputs, doubled(inputs)) if training else (inputs,):
                self.opened.reopen()
                try:
                    with self.observer.tentative(), self.settings.tentative():
                        self._walk_in(training, given)
                except CaptureError as error:
                    errors.append(error)
                else:
                    return Walked(training, given, self.nodes, self.observations)
        self.notes.append(
            f"{MODES[training]} mode was not looked at, because forward raises there: {errors[0].first_why}"
        )
        return None

    def _walk_in(self, training: bool, inputs: Inputs) -> None:
        """Run the model in a mode, set as its class does it. Raises `CaptureError` if that, or the forward, raises."""
        set_mode(self.opened.module, training)
        self.settings.mark(self.opened.module)
        self._walk(inputs, when=f" (in {MODES[training]} mode)")
        self._lock_results(when=f"in {MODES[training]} mode")

    # -- inputs, results and what was not reached ---------------------------------------------------------

    def _open_inputs(self, result: Any) -> None:
        """Give the inputs fixed vectors. Their numbers count as unknown, even if they are real."""
        for tensor in tensors_in(result):
            fixed = tuple(self.terms.fixed(size) for size in tensor.shape)
            self.observer.bind(tensor, Operand(fixed, (True,) * len(fixed)))

    def _keep_result(self, result: Any) -> None:
        """Keep the result of a run, with the event that its place gives, until `_lock_results` is called."""
        self.observer.recorder.result(tensors_in(result))
        self.results.append((result, self.observer.event("output", "output of the model")))
        for name in objects_in(result):
            self.notes.append(f"{name} in the result is taken for internal state: it has the widths of the model")

    def _lock_results(self, *, when: str = "on some of the inputs") -> Results:
        """Lock the outputs in the results of the runs since the last call, and return the last result.

        The first time, this is the run that says which parts of the result are meant by the paths of the user. Raises
        `InputError` if there are no such parts. when: for the note about results of another form.
        """
        made, self.results = self.results, []
        last = made[-1][0]
        if self.outputs is None and self.subject.outputs is not None:
            self.outputs = Outputs.of(last, self.subject.outputs)
        for result, event in made:
            self._lock_result(result, event, when)
        if self.outputs is None or not self.outputs.fit(last):
            return Results(self.outputs)
        others = self.outputs.others(last)
        found = Results(self.outputs, tuple((path, self.observer.operand(tensor).vectors) for path, tensor in others))
        self.notes.append(found.note())
        return found

    def _lock_result(self, result: Any, event: int, when: str) -> None:
        """Lock the outputs in the result of a run."""
        for tensor in tensors_that_count(self.outputs, result):
            operand = self.observer.operand(tensor)
            for vector in (*operand.vectors, *((operand.labels,) if operand.labels is not None else ())):
                self.terms.lock(vector, event)
        if self.outputs is not None and not self.outputs.fit(result):
            self.notes.append(f"the result has another form {when}, and all of it counts as output there")

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


def _listed(paths: Sequence[str]) -> str:
    """The first paths of modules, and how many there are more."""
    named = ", ".join(path or "the model" for path in paths[:3])
    return named + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
