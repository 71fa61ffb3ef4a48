"""The walks over a captured model: its graph runs once per example input, and an `Observer` sees every operation.

Where code of the model reads its mode, the graph runs in the other mode too, so that what only training reaches is
analysed as well. Where code asks if gradients are recorded, it runs with gradients too. Other methods that the user
names run like forward.
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
from fxprune.analysis.unseen_mode import reason_for_unseen
from fxprune.capture.file_state import Code
from fxprune.capture.inputs import Inputs
from fxprune.capture.mode_layers import fixed_mode_note
from fxprune.capture.modes import (
    MODES,
    RunMode,
    doubled,
    in_mode,
    modules_reading_training,
    random_decisions,
    tells_modes_by_reading,
)
from fxprune.capture.output_paths import OutputPath, Outputs, paths_text, tensors_that_count
from fxprune.capture.places import module_of, source_of
from fxprune.capture.process_state import no_caches
from fxprune.capture.reads import Reads, watched_reads
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
        self.mode, self.reads = RunMode(subject.model.training), Reads()
        self.files = Code.of(subject.model).files
        self.by_reads = tells_modes_by_reading(subject.captured.module)

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

    def _walk(self, inputs: Inputs, *, method: str = "", when: str = "") -> Walked:
        """Run the model that is open, and once more if forward leaves a state that a second call reads.

        method: what to call instead of forward. when: a text about a run after that on the first example inputs.
        """
        state = State(self.opened.module, users=True)
        decisions = (random_decisions(),) if when else ()
        self._run(inputs, method, when, decisions)
        if not method and not when:
            self.observer.recorder.keep_run()
        training, gradients = self.mode
        readers = frozenset(self.reads.modes)
        walked = Walked(training, inputs, self.nodes, self.observations, method, gradients, readers)
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
        arguments = captured.arguments(inputs, method)
        with (
            told_seeds(),
            no_caches(self.subject.model) as opened.scopes.between_modules,
            watched_reads(opened.module, self.reads, self.files, torchs=captured.real),
        ):
            self.observer.begin_run(when)
            walk(
                captured.graph,
                opened.module,
                opened.faker,
                arguments,
                self._visit,
                modes,
                gradients=self.mode.gradients,
            )

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
        """Run forward in other modes, and the other methods, in other modes likewise. See `_next_modes`."""
        subject, given = self.subject, self.mode
        self._note_fixed_mode()
        yield from self._in_other_modes("", (subject.inputs, *subject.more))
        for call in subject.methods:
            self.mode, self.reads = given, Reads()
            self.opened.reopen()
            self.settings.mark(self.opened.module)
            walked = self._walk(call.inputs, method=call.name, when=f' (in the method "{call.name}")')
            self._lock_results(call.name)
            yield walked
            yield from self._in_other_modes(call.name, (call.inputs,))
        self.mode = given

    def _note_fixed_mode(self) -> None:
        """Note that a graph has one mode, where code of the model or a layer of torch reads its mode."""
        model, captured = self.subject.model, self.subject.captured
        if captured.front_end.fixes_mode and (note := fixed_mode_note(model, captured.graph.owning_module)):
            self.notes.append(note)
            self.looked_everywhere = self.looked_everywhere and not modules_reading_training(model)

    def _in_other_modes(self, method: str, tries: Sequence[Inputs]) -> Iterator[Walked]:
        """Run forward or a method in all other modes in which it may do something else. tries: see `_in_other_mode`."""
        done, todo = {self.mode}, self._next_modes()
        while todo:
            mode = todo.pop(0)
            if mode not in done:
                done.add(mode)
                self.mode, self.reads = mode, Reads()
                yield from self._in_other_mode(method, tries)
                todo += self._next_modes()

    def _next_modes(self) -> list[RunMode]:
        """The modes that differ from that of the last run by what its code has asked.

        Code that has not asked, as a dropout behind `if self.rate > 0`, does the same in the other mode.
        """
        (training, gradients), fixed = self.mode, self.subject.captured.front_end.fixes_mode
        if self.reads.inference:
            self.notes.append(
                "what forward does under torch.inference_mode() was not looked at, because it asks for that mode: "
                "fxprune runs models outside of it"
            )
        found = []
        if not fixed and (self.reads.modes or not self.by_reads):
            found.append(RunMode(not training, gradients))
        if self.reads.gradients:
            found.append(RunMode(training, not gradients))
        return found

    def _in_other_mode(self, method: str, tries: Sequence[Inputs]) -> Iterator[Walked]:
        """Run forward or a method in the mode `self.mode`, on the first inputs on which it runs.

        Nothing if it raises on all of them: then a note says so. Raises `CaptureError` if it raises on fake tensors
        alone, since it decides by numbers in that mode: then the model has to be walked on real ones.
        """
        errors, given = [], self.subject.model.training
        doubles = self.mode.training and not given
        for inputs in tries:
            for one in (inputs, doubled(inputs)) if doubles else (inputs,):
                self.opened.reopen()
                try:
                    with self.observer.tentative(), self.settings.tentative():
                        walked = self._walk_in_mode(one, method)
                except CaptureError as error:
                    errors.append(error)
                else:
                    yield walked
                    return
        self._note_unseen_mode(method, reason_for_unseen(self.subject, self.mode, method, tries, errors[0]))

    def _note_unseen_mode(self, method: str, reason: str) -> None:
        """Note that forward, or a method, was not looked at in the mode `self.mode`."""
        self.looked_everywhere, given = False, self.subject.model.training
        called = f' of the method "{method}"' if method else ""
        mode = self.mode.text(given).removeprefix("in ")
        mode = mode if mode.startswith(tuple(MODES.values())) else f"what is done {mode}"
        self.notes.append(f"{mode}{called} was not looked at, because {reason}")

    def _walk_in_mode(self, inputs: Inputs, method: str) -> Walked:
        """Run the model in the mode `self.mode`, set as its class does it.

        Raises `CaptureError` if that, or the run, raises.
        """
        module, training, given = self.opened.module, self.mode.training, self.subject.model.training
        when = self.mode.text(given)
        called = f'in the method "{method}", ' if method else ""
        with in_mode(module, training) if training != given else contextlib.nullcontext():
            self.settings.mark(module)
            walked = self._walk(inputs, method=method, when=f" ({called}{when})")
        self._lock_results(method, when=when)
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
