"""The repair of a small model, layer by layer."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._record.repaired import Repair, RepairedLayer
from fxprune._repair.batch_norms import take_statistics
from fxprune._repair.batches import DataPart, held_out, parts_of
from fxprune._repair.lanes import Lane, Model, OtherCallsError, first_not_finite
from fxprune._repair.layer import LayerFit, not_finite
from fxprune._repair.noise import takes_noise
from fxprune._repair.outputs import relative_squared_error, squared_errors
from fxprune._repair.outputs_fit import OutputsFit
from fxprune._repair.pages import Pages
from fxprune._repair.pairs import LayerPair, layers_of, stacks_of, tied_in
from fxprune._repair.repeated import FEW, Rows, repeats_in, warn_of_repeats
from fxprune._repair.settings import RepairSettings
from fxprune._repair.survey import Survey, merged
from fxprune.capture.inputs import Inputs
from fxprune.capture.module_copy import deep_copy
from fxprune.capture.process_state import no_fused_attention, no_fused_recurrence, same_random_state
from fxprune.capture.tensors import Tensors
from fxprune.errors import InputError, counted, level_of_user
from fxprune.planning.plan import Plan
from fxprune.progress import bar
from fxprune.running.inputs import sample_count
from fxprune.running.processes import ALONE, Processes
from fxprune.running.watch import LayerKey

Saved = list[tuple[Tensor, Callable[[], object]]]
"""Parts of parameters and buffers, each with a function that gives it its numbers back."""


def check_values(model: nn.Module) -> None:
    """Raises `InputError` for a model on the meta device."""
    if Tensors.of(model).weightless:
        raise InputError(
            "the weights have no values",
            why="the model is on the meta device, so that there is nothing to refit",
            do="load its weights first",
        )


def repaired(
    small: nn.Module,
    model: nn.Module,
    batches: Sequence[Inputs],
    plan: Plan,
    settings: RepairSettings,
    processes: Processes = ALONE,
) -> tuple[nn.Module, Repair]:
    """A repaired copy of a small model, and what was done.

    model: the original. batches: the inputs of both. plan: the plan that made `small`. processes: those that work
    together.
    """
    check_values(small)
    made, pages = deep_copy(small), Pages(settings.memory)
    ours, theirs = pages.of(made), pages.of(model)
    _refuse_all_at_once(settings, pages)
    modes = [(module, module.training) for one in (ours, theirs) for module in one.modules()]
    recurrent = any(isinstance(module, nn.RNNBase) for module in ours.modules())
    recurrence = no_fused_recurrence() if recurrent else contextlib.nullcontext()
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), no_fused_attention(), recurrence, same_random_state(), pages.mode():
            work = _Work(ours, theirs, batches, plan, settings, processes, pages)
            report = work.norms() if settings.mode == "norms" else work.layers()
            pages.close()
    finally:
        for module, training in modes:
            module.training = training
    return made, report


def _refuse_all_at_once(settings: RepairSettings, pages: Pages) -> None:
    """Raises `InputError` for a mode that needs all weights in memory, where they lie elsewhere."""
    if pages and settings.mode == "outputs":
        raise InputError(
            'mode "outputs" is not possible here',
            at="the weights lie in memory of other devices, or on disk",
            why="it moves all weights together, and needs them and their gradients at a time",
            do='pass mode="weights", which works layer by layer',
        )


class _Work:
    """A repair of `small` in place."""

    def __init__(
        self,
        small: nn.Module,
        original: nn.Module,
        batches: Sequence[Inputs],
        plan: Plan,
        settings: RepairSettings,
        processes: Processes,
        pages: Pages,
    ) -> None:
        self.original = Model(original, pages=pages)
        stacks = stacks_of(plan, self.original.parameters)
        self.small = Model(
            small, "the small model", "give `transform` such inputs too: `also=[batch]`", stacks=stacks, pages=pages
        )
        self.plan, self.settings, self.processes, self.pages = plan, settings, processes, pages
        self.parts = self._parts_of(batches)
        theirs, ours = self._surveyed(self.original), self._surveyed(self.small)
        self.surveys = ours, theirs
        self.judges = [part for part in self.parts if part.held]
        self.wanted = [self.original.run(part) for part in self.judges]

    def _parts_of(self, batches: Sequence[Inputs]) -> list[DataPart]:
        """The parts of the data, some of them held out. Raises `InputError` if there are too few."""
        parts = parts_of(batches, sum(self.processes.all(len(batches))), self._takes)
        counts = self.processes.all(len(parts))
        if sum(counts) < 2:
            self.original.run(parts[0])
            raise InputError(
                "a repair needs at least two samples",
                why="one part of them is held out, to see whether the repair helps on other inputs",
                do="pass more batches, or a batch of several samples",
            )
        before = sum(counts[: self.processes.rank])
        held = held_out(sum(counts), self.settings.holdout)[before : before + len(parts)]
        made = [replace(part, held=judges) for part, judges in zip(parts, held, strict=True)]
        few = sum(sample_count(part.inputs) for part in made if part.held)
        if sum(self.processes.all(few)) < FEW:
            given = sum(self.processes.all(sum(sample_count(part.inputs) for part in made)))
            text = f"the repair has {counted(given, 'sample')}, of which one alone judges whether it helps"
            warnings.warn(f"{text} on other inputs: pass some hundred", UserWarning, stacklevel=level_of_user())
        return made

    def _takes(self, part: DataPart) -> bool:
        try:
            self.original.run(part)
            self.small.run(part)
        except InputError:
            return False
        return True

    def _surveyed(self, model: Model) -> list[Survey]:
        """The survey of a model on each part. Parts of one form have one survey, unless forward decides by numbers."""
        found: list[Survey] = []
        known: dict[Any, Survey] = {}
        for part in self.parts:
            form = part.form
            if form not in known or known[form].decides:
                known[form] = model.surveyed(part)
            found.append(known[form])
        return found

    def before(self) -> float:
        """The error of the small model as it is. Raises `InputError` where outputs are not finite, or none counts."""
        try:
            self.processes.all(relative_squared_error(zip(map(self.small.run, self.judges), self.wanted, strict=True)))
        except InputError:
            for model in (self.original, self.small):
                for part in self.judges:
                    layer = first_not_finite(model, part)
                    if layer:
                        raise not_finite(layer, f"batch {part.batch}") from None
            raise
        return self.error()

    def error(self) -> float:
        """The error of the outputs on the held-out samples."""
        total, count = squared_errors(zip(map(self.small.run, self.judges), self.wanted, strict=True))
        sums = self.processes.all((total, count))
        return sum(one for one, _ in sums) / max(sum(number for _, number in sums), 1)

    def norms(self) -> Repair:
        """Measure the statistics of the batch norms again, unless the outputs are worse with them."""
        before = self.before()
        state = [self.pages.kept(buffer) for buffer in self.small.module.buffers()]
        train = [part for part in self.parts if not part.held]
        count = take_statistics(self.small.module, train, self.processes, pages=self.pages)
        after = self.error()
        left = {} if count else {"": "the model has no batch norm with running statistics"}
        if after <= before:
            changed = tuple(name for name, _ in self.small.module.named_buffers()) if count else ()
            return Repair("norms", {}, left, before, after, (), changed)
        for restore in state:
            restore()
        return Repair("norms", {}, left, before, before, ("the statistics of batch norms",), ())

    def layers(self) -> Repair:
        """Refit layer by layer; then take back the last refits, as many as make the outputs worse."""
        before = self.before()
        both = [
            merged(one for some in self.processes.all(list(dict.fromkeys(surveys))) for one in some)
            for surveys in self.surveys
        ]
        parameters = self.small.parameters, self.original.parameters
        found = layers_of(both[0], both[1], self.plan, parameters, tied_in(self.small.module))
        left = dict(found.left)
        lanes = self._lanes(found.pairs, sum(one.memory for one in both))
        done: dict[LayerKey, RepairedLayer] = {}
        states: list[tuple[LayerKey, Saved]] = []
        rows: dict[LayerKey, Rows] = {}
        try:
            for key, pair in self._bar(found.pairs):
                fit = LayerFit(pair, *parameters)
                why = self._gather(fit, lanes)
                if why:
                    left[key[0]] = why
                    continue
                states.append((key, self._tensors_of(pair)))
                refit = fit.solve(self.settings.ridges, weights=self.settings.mode != "bias")
                self.processes.first(view for view, _ in states[-1][1])
                for view, _ in states[-1][1]:
                    self.pages.written(view)
                done[key] = RepairedLayer(refit.error, refit.repaired, refit.ridge)
                if refit.repaired < refit.error:
                    rows[key] = Rows(sum(self.processes.all(fit.rows)), fit.inputs)
        finally:
            for lane in lanes:
                lane.stop()
        undone, after = self._judged(states, before)
        names = _names(done)
        known = {names[key]: seen for key, seen in rows.items() if key not in undone}
        warn_of_repeats(repeats_in(self.parts, self.processes), known)
        stays = [key for key, layer in done.items() if key not in undone and layer.after < layer.before]
        changed = dict.fromkeys(name for key in stays for name in _changed_by(found.pairs[key], done[key]))
        if self.settings.mode == "outputs":
            after, why, moved = self._together()
            if why:
                left["all weights together"] = why
            else:
                changed |= dict.fromkeys(moved)
        layers = {names[key]: layer for key, layer in done.items()}
        taken_back = tuple(names[key] for key in undone)
        return Repair(self.settings.mode, layers, left, before, after, taken_back, tuple(changed))

    def _together(self) -> tuple[float, str, tuple[str, ...]]:
        """Fit all weights together to the outputs.

        Returns the error, why it did not help, "" if it did, and the names of the weights.
        """
        train = [part for part in self.parts if not part.held]
        noise = self.settings.noise
        if noise and not any(takes_noise(leaf) for part in train for leaf in pytree.tree_leaves(part.inputs)):
            raise InputError(
                "noise is without effect here",
                at=f"noise={noise}",
                why="no input holds fractions, several in each sample",
                do="leave noise out",
            )
        wanted = [] if noise else [self.original.run(part) for part in train]
        fit = OutputsFit(self.small, self.original, train, wanted, self.processes, noise)
        steps = self.settings.steps
        with bar(total=steps, what="outputs", unit="step", show=self.settings.progress) as drawn:
            return *fit.fit(steps, self.error, drawn.update), tuple(fit.names)

    def _lanes(self, pairs: Mapping[LayerKey, LayerPair], memory: int) -> list[Lane]:
        """A lane for each part, which needs so much memory when it waits: there, or on disk, as long as there is space.

        Of the lanes on disk one is in memory at a time.
        """
        count, free = len(self.parts), shutil.disk_usage(tempfile.gettempdir()).free // 2
        limits = self.settings.memory, min(self.settings.disk, free)
        in_memory, on_disk = (min(limit // max(memory, 1), count) for limit in limits)
        places = ["memory"] * (in_memory if in_memory == count else max(in_memory - 1, 0))
        places += ["disk"] * on_disk + [""] * count
        surveys = [survey for some in self.surveys for survey in some]
        waiting_at = {key for key in pairs if all(survey.calls.get(key, 0) <= 1 for survey in surveys)}
        return [
            Lane(
                self.small,
                self.original,
                part,
                survey.calls,
                waiting_at,
                waits_in=place,
            )
            for part, survey, place in zip(self.parts, self.surveys[0], places, strict=False)
        ]

    def _bar(self, pairs: dict[LayerKey, LayerPair]) -> Iterable[tuple[LayerKey, LayerPair]]:
        return bar(pairs.items(), what="repair", unit="layer", show=self.settings.progress)

    def _gather(self, fit: LayerFit, lanes: Sequence[Lane]) -> str:
        """Give a layer all its rows. Returns why it cannot be refitted, "" if it can."""
        found = []
        for lane in lanes:
            try:
                found.append(fit.add(lane.at(fit.pair), held_out=lane.part.held))
            except OtherCallsError as error:
                found.append(str(error))
        why = next(filter(None, found), "" if fit.product is not None else "no batch reached it")
        why = next(filter(None, self.processes.all(why)), "")
        if not why:
            self.processes.add(fit.sums())
            assert fit.train is not None
            assert fit.held is not None
            if not fit.train.rows.any() or not fit.held.rows.any():
                why = f"no {'held-out ' if fit.train.rows.any() else ''}batch reaches it that is needed for a refit"
        return why

    def _tensors_of(self, pair: LayerPair) -> Saved:
        """The tensors that a refit of the layer changes, with copies."""
        tensors = self.small.parameters.tensors
        others = [tensors[name] for name in (pair.small.bias and pair.small.bias[0], pair.mean) if name]
        views = (pair.small.place.of(tensors[pair.key[0]]), *others)
        return [(view, self.pages.kept(view)) for view in views]

    def _judged(self, states: list[tuple[LayerKey, Saved]], before: float) -> tuple[list[LayerKey], float]:
        """Take back refits from the last one on, until the outputs are not worse than before. Returns these refits."""
        undone: list[LayerKey] = []
        after = self.error()
        while states and not after <= before:
            for key, tensors in reversed(states[len(states) // 2 :]):
                for _, restore in tensors:
                    restore()
                undone.append(key)
            del states[len(states) // 2 :]
            after = self.error()
        return undone[::-1], after


def _changed_by(pair: LayerPair, refit: RepairedLayer) -> Iterator[str]:
    """The names of the tensors that a refit has changed: the weight, and the bias or the mean that takes the offset."""
    if refit.ridge is not None:
        yield pair.key[0]
    if pair.small.bias is not None:
        yield pair.small.bias[0]
    elif pair.mean is not None:
        yield pair.mean


def _names(keys: Iterable[LayerKey]) -> dict[LayerKey, str]:
    """A name of each layer: that of its parameter, with a number where several blocks of it are layers."""
    found = list(keys)
    several = {name for name, number in found if number}
    return {key: f"{key[0]}, block {key[1]}" if key[0] in several else key[0] for key in found}
