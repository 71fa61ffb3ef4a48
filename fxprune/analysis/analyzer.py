"""The walks over a captured model: its graph runs once per example input, and an `Observer` sees every operation.

Where code of the model reads its mode, the graph runs in the other mode too, so that what only training reaches is
analysed as well. Other methods that the user names run like forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.marking import Settings
from fxprune.analysis.observed import Observation, Place, Walked
from fxprune.analysis.observer import IN_RESULT
from fxprune.analysis.opened import Opened
from fxprune.analysis.results import Results
from fxprune.capture.inputs import Inputs
from fxprune.capture.modes import (
    MODES,
    doubled,
    modules_reading_training,
    random_decisions,
    set_mode,
    tells_modes_by_reading,
)
from fxprune.capture.output_paths import OutputPath, Outputs, paths_text, tensors_that_count
from fxprune.capture.places import module_of, source_of
from fxprune.capture.process_state import mode_reads, no_caches
from fxprune.capture.seeds import told_seeds
from fxprune.capture.state import State
from fxprune.capture.values import map_tensors, objects_in, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.ops import Operand

Mode = contextlib.AbstractContextManager[Any]


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
        self.elsewhere: set[OutputPath] = set()
        self.looked_everywhere = True
        self.state: set[str] = set()
        self.reading = modules_reading_training(subject.model)
        by_reads = self.reading and not subject.captured.real and tells_modes_by_reading(subject.model)
        self.reads: set[str] | None = set() if by_reads else None

    def run(self) -> Findings:
        """Run the model on all example inputs, and return the findings.

        What is kept of a node is from the run on the first example inputs. So is the first call of a module, unless
        only another run reaches that module. The runs in the other mode and of other methods come last.

        Raises `CaptureError` if the forward raises, `RuleError` under `strict` for an operation without a rule.
        """
        subject = self.subject
        runs = []
        for number, inputs in enumerate(reversed((subject.inputs, *subject.more))):
            if number:
                self.opened.reopen()
            self.settings.mark(self.opened.module)
            runs.append(self._walk(inputs))
        first = self.results[-1][0]
        results = self._lock_results()
        others = tuple(self._other_runs())
        self._check_paths(first)
        self.observer.begin_run()
        self._follow_index_lists()
        self._lock_unread()
        self._note_unused()
        uses = self.settings.uses(self.opened.unread_vectors())
        return self.opened.findings(runs[-1], uses, self.notes, results, others, runs[-2::-1], self.state)

    def _walk(self, inputs: Inputs, *, method: str = "", when: str = "", training: bool | None = None) -> Walked:
        """Run the model that is open, and once more if forward leaves a state that a second call reads.

        method: what to call instead of forward. when: a text about a run after that on the first example inputs.
        training: the mode of the run; by default the one in which the model was given.
        """
        state = State(self.opened.module, users=True)
        decisions = (random_decisions(),) if when else ()
        self._run(inputs, method, when, decisions)
        if not method and not when:
            self.observer.recorder.keep_run()
        given = self.subject.model.training if training is None else training
        walked = Walked(given, inputs, self.nodes, self.observations, method)
        if not state.changed():
            return walked
        self.state |= self.opened.written()
        return replace(walked, again=self._walk_again(walked, when, decisions))

    def _walk_again(self, walked: Walked, when: str, decisions: Sequence[Mode]) -> Walked | None:
        """Run the model once more, which reads the state that the run before has left.

        If it raises, nothing of it is kept but what it unified, and a note says so.
        """
        try:
            with self.observer.tentative(), self.settings.tentative():
                self._run(walked.inputs, walked.method, f" (in a second call){when}", decisions)
        except CaptureError as error:
            self.notes.append(f"a second call{when} was not looked at, because it raises: {error.first_why}")
            return None
        self.results[-2:] = reversed(self.results[-2:])
        return replace(walked, nodes=self.nodes, observations=self.observations)

    def _run(self, inputs: Inputs, method: str, when: str, decisions: Sequence[Mode]) -> None:
        opened, captured = self.opened, self.subject.captured
        self.nodes, self.observations = {}, {}
        modes = (*decisions, opened.scopes.watching(), self.settings, self.observer)
        watched = contextlib.nullcontext(set[str]()) if self.reads is None else mode_reads()
        with told_seeds(), watched as reads, no_caches(self.subject.model) as opened.scopes.between_modules:
            self.observer.begin_run(when)
            walk(captured.graph, opened.module, opened.faker, captured.arguments(inputs, method), self._visit, modes)
        if self.reads is not None:
            self.reads |= reads

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

    # -- further runs --------------------------------------------------------------------------------------

    def _other_runs(self) -> Iterator[Walked]:
        """Run forward in the mode in which the model was not given, and the other methods, in both modes likewise."""
        subject, has_two_modes = self.subject, self._has_two_modes()
        if has_two_modes and self._has_read_mode():
            yield from self._in_other_mode("", (subject.inputs, *subject.more))
        for call in subject.methods:
            if self.reads is not None:
                self.reads.clear()
            self.opened.reopen()
            self.settings.mark(self.opened.module)
            walked = self._walk(call.inputs, method=call.name, when=f' (in the method "{call.name}")')
            self._lock_results(call.name)
            yield walked
            if has_two_modes and self._has_read_mode():
                yield from self._in_other_mode(call.name, (call.inputs,))

    def _has_two_modes(self) -> bool:
        """True if code of the model reads its mode, and both modes can be run. A graph has one: then a note says so."""
        captured, reading = self.subject.captured, self.reading
        if reading and captured.front_end.fixes_mode:
            is_training = self.subject.model.training
            self.notes.append(
                f"the graph is that of {MODES[is_training]} mode: what {_listed(reading)} would do otherwise in "
                f"{MODES[not is_training]} mode is not in it"
            )
            self.looked_everywhere = False
            return False
        return bool(reading and modules_reading_training(captured.module))

    def _has_read_mode(self) -> bool:
        """True if code has read the mode since the last method, or may have done so in a way that is not seen.

        Code that has not, as a dropout behind `if self.rate > 0`, does the same in the other mode.
        """
        return self.reads is None or bool(self.reads)

    def _in_other_mode(self, method: str, tries: Sequence[Inputs]) -> Iterator[Walked]:
        """Run forward or a method in the mode in which the model was not given, on the first inputs on which it runs.

        Nothing if it raises on all of them: then a note says so.
        """
        training = not self.subject.model.training
        errors = []
        for inputs in tries:
            for given in (inputs, doubled(inputs)) if training else (inputs,):
                self.opened.reopen()
                try:
                    with self.observer.tentative(), self.settings.tentative():
                        walked = self._walk_in(training, given, method)
                except CaptureError as error:
                    errors.append(error)
                else:
                    yield walked
                    return
        self.looked_everywhere = False
        called = f'of the method "{method}" ' if method else ""
        raises = "it" if method else "forward"
        self.notes.append(
            f"{MODES[training]} mode {called}was not looked at, because {raises} raises there: {errors[0].first_why}"
        )

    def _walk_in(self, training: bool, inputs: Inputs, method: str) -> Walked:
        """Run the model in a mode, set as its class does it. Raises `CaptureError` if that, or the run, raises."""
        set_mode(self.opened.module, training)
        self.settings.mark(self.opened.module)
        called = f'in the method "{method}", ' if method else ""
        when = f" ({called}in {MODES[training]} mode)"
        walked = self._walk(inputs, method=method, when=when, training=training)
        self._lock_results(method, when=f"in {MODES[training]} mode")
        return walked

    # -- inputs, results and what was not reached ---------------------------------------------------------

    def _open_inputs(self, result: Any) -> None:
        """Give the inputs fixed vectors. Their numbers count as unknown, even if they are real."""
        self.observer.recorder.given(tensors_in(result))
        for tensor in tensors_in(result):
            fixed = tuple(self.terms.fixed(size) for size in tensor.shape)
            self.observer.bind(tensor, Operand(fixed, (True,) * len(fixed)))

    def _keep_result(self, result: Any) -> None:
        """Keep the result of a run, with the event that its place gives, until `_lock_results` is called."""
        self.observer.recorder.result(tensors_in(result))
        self.results.append((result, self.observer.event("output", IN_RESULT)))
        for name in objects_in(result):
            self.notes.append(f"{name} in the result is taken for internal state: it has the widths of the model")

    def _lock_results(self, method: str = "", *, when: str = "on some of the inputs") -> Results:
        """Lock the outputs in the results of the runs since the last call, and return the last result.

        The first time, this is the run that says which parts of the result are meant by the paths of the user. Raises
        `InputError` if there are no such parts. method: what was called instead of forward; all of its result counts.
        when: for the note about results of another form.
        """
        made, self.results = self.results, []
        last = made[-1][0]
        if method:
            for result, event in made:
                self._lock_tensors(tensors_in(result), event)
            return Results()
        if self.outputs is None and self.subject.outputs is not None:
            self.outputs = Outputs.of(last, self.subject.outputs)
            self.elsewhere = set(self.outputs.elsewhere)
        for result, event in made:
            self._lock_result(result, event, when)
        if self.outputs is None or not self.outputs.fit(last):
            return Results(self.outputs)
        others = self.outputs.others(last)
        found = Results(self.outputs, tuple((path, self.observer.operand(tensor).vectors) for path, tensor in others))
        self.notes.append(found.note())
        return found

    def _lock_result(self, result: Any, event: int, when: str) -> None:
        """Lock the outputs in the result of a run of forward."""
        self._lock_tensors(tensors_that_count(self.outputs, result), event)
        if self.outputs is None or self.outputs.fit(result):
            return
        found = self.outputs.found_elsewhere(result)
        self.elsewhere -= set(found)
        counts = f"{paths_text(found)} of it" if found else "all of it"
        self.notes.append(f"the result has another form {when}, and {counts} counts as output there")

    def _check_paths(self, result: Any) -> None:
        """Raise `InputError` for a path of the user that no result has. result: that on the first example inputs.

        If a mode could not be looked at, the path may be for that one, and a note says so.
        """
        if self.outputs is None or not self.elsewhere:
            return
        missing = [path for path in self.outputs.elsewhere if path in self.elsewhere]
        if self.looked_everywhere:
            Outputs.of(result, missing)
        self.notes.append(f"no result that was looked at has the part {paths_text(missing)}, which counts as output")

    def _lock_tensors(self, tensors: Iterable[torch.Tensor], event: int) -> None:
        for tensor in tensors:
            operand = self.observer.operand(tensor)
            for vector in (*operand.vectors, *((operand.labels,) if operand.labels is not None else ())):
                self.terms.lock(vector, event)

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

        A `GraphModule` leaves them out, unless they are in a module that is one node; a model that keeps its class does
        not.
        """
        names, captured = self.opened.unused_parameters(), self.subject.captured
        if names and captured.has_graph:
            whole = tuple(f"{node.target}." for node in captured.graph.find_nodes(op="call_module"))
            names = [name for name in names if name.startswith(whole)]
        if names:
            listed = _first(names, 4)
            also = "; if other inputs reach them, give such inputs with `also`" if captured.real else ""
            self.notes.append(f"not reached on the example inputs, and left as they are: {listed}{also}")


def _first(names: Sequence[str], count: int) -> str:
    """The first names, and how many there are more."""
    return ", ".join(names[:count]) + (f", ... {len(names) - count} more" if len(names) > count else "")


def _listed(paths: Sequence[str]) -> str:
    """The first paths of modules, and how many there are more."""
    named = ", ".join(path or "the model" for path in paths[:3])
    return named + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
