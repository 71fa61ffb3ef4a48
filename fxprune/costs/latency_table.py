"""A table of latencies: the times of a model's layers at some widths, measured; in between they are interpolated.

The smaller models are made and run, each in turns with the original, so that a slow minute of the machine makes both
slow: what is kept is the ratio. Two kinds of rounds take turns. In one the whole forward is timed. In the other every
operation is timed alone, where it stands in the forward, and the times are summed for each layer. What remains (calls
of Python, launches, the effect that layers have on each other's caches) is the time of the whole less that of all
layers, and is interpolated as if it were a layer.

The time of a layer depends on its multiply-adds, or where it has none, on the elements that it makes.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import module_hooks
from fxprune.channels.groups import Removal
from fxprune.costs.count import contractions, macs_of
from fxprune.costs.latency import Runnable, Runs, check_can_run, clock_of, device_of, runnable, timer_of
from fxprune.costs.latency_file import LatencyFile, Point

REST = "(rest)"
"""The name under which the time outside of all layers stands."""

LONG, FEWEST, MOST = 0.4, 5, 15
"""A model is run for about so many seconds, but at least and at most in so many rounds."""

CONTRADICTS = 1.25
"""A share of the original's latency contradicts another one that is more than so many times larger or smaller."""

MeasuresLayers = Callable[[nn.Module, nn.Module, Inputs], tuple[float, float, Mapping[str, float]]]
"""Takes the original, a small model and the inputs. Gives the seconds of the original, of the small model, and of each
of its layers."""


def watched(
    original: nn.Module, small: nn.Module, inputs: Inputs, runs: Runs = runnable
) -> tuple[float, float, Mapping[str, float]]:
    """The seconds of both models, medians of rounds in turns, and of the layers of the small one.

    runs: what a call is, where it is not a forward on the inputs.
    """
    device = device_of(original)
    clock, timer = clock_of(device), timer_of(device)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(runs(model, inputs)) for model in (original, small))
        second.call()
        rounds = max(FEWEST, min(MOST, int(LONG / clock(first.call))))
        wholes: tuple[list[float], list[float]] = ([], [])
        layers: dict[str, list[float]] = {}
        for _ in range(rounds):
            wholes[0].append(clock(first.call))
            wholes[1].append(clock(second.call))
            for path, seconds in _layer_times(second, timer).items():
                layers.setdefault(path, []).append(seconds)
    medians = {path: statistics.median(times) for path, times in layers.items()}
    return statistics.median(wholes[0]), statistics.median(wholes[1]), medians


def _layer_times(model: Runnable, timer: Callable[[], float]) -> dict[str, float]:
    """The seconds of the operations that each module runs itself, without the modules in it."""
    names = {id(module): name for name, module in model.module.named_modules()}
    clock = _Operations(timer)

    def before(module: nn.Module, args: Any) -> None:
        clock.running.append(names.get(id(module), clock.running[-1]))

    def after(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        clock.running.pop()

    with module_hooks(before, after), clock:
        model.call()
    return clock.seconds


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operation, and adds it to the module that runs it: the last one in `running`."""

    def __init__(self, timer: Callable[[], float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timer = timer
        self.running = [""]
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.timer()
        made = func(*args, **(kwargs or {}))
        path = self.running[-1]
        self.seconds[path] = self.seconds.get(path, 0.0) + self.timer() - start
        return made


@dataclass(frozen=True)
class _Known:
    """A measured point: the work of each layer, and its seconds."""

    work: Mapping[str, float]
    seconds: Mapping[str, float]


class LatencyTable:
    """Latencies of the smaller models that removals leave: measured for some, predicted for others.

    small: makes the smaller model that a removal leaves.
    file: where measurements are kept, None for nowhere.
    watch: measures a small model in turns with the original.
    runs: what a call is, where it is not a forward on the inputs.
    full: the seconds of the original.

    Raises `CaptureError` for a model on the meta device, and where the forward raises.
    """

    def __init__(
        self,
        findings: Findings,
        small: Callable[[Removal], nn.Module],
        file: LatencyFile | None = None,
        watch: MeasuresLayers | None = None,
        runs: Runs | None = None,
    ) -> None:
        check_can_run(findings.model)
        self._findings, self._small = findings, small
        self._watch = watch or (watched if runs is None else partial(watched, runs=runs))
        self._file, self._about = file, _about(findings, runs)
        self._points: dict[str, Point] = {} if file is None else file.read(self._about)
        self._measured: list[_Known] = []
        self._wholes: dict[str, float] = {}
        whole = Removal(findings.solution, findings.solution.no_channel())
        self.full = next((point.original for point in self._points.values()), 0.0)
        self.learn(whole)

    def learn(self, removal: Removal) -> bool:
        """Measure the smaller model of a removal. Returns False if its latency was known before."""
        widths = _widths(self._findings, removal)
        if widths in self._wholes:
            return False
        point = self._points.get(widths)
        if point is None:
            original, whole, layers = self._watch(self._findings.model, self._small(removal), self._findings.inputs)
            self.full = self.full or original
            scale = self.full / original
            point = Point(self.full, whole * scale, {path: seconds * scale for path, seconds in layers.items()})
            self._points[widths] = point
            if self._file is not None:
                self._file.write(self._about, self._points)
        if (
            not self._measured
        ):  # the first removal is none: a copy of the original, whose seconds are those of the original
            layers = {path: seconds * self.full / point.whole for path, seconds in point.layers.items()}
            point = Point(self.full, self.full, layers)
        self._wholes[widths] = point.whole
        rest = point.whole - sum(point.layers.values())
        work = self._work(removal, point.layers)
        self._measured.append(_Known(work, {**point.layers, REST: rest}))
        return True

    def predict(self, removal: Removal) -> float:
        """The seconds of the smaller model: those measured if it was measured, else the sum of its layers' times."""
        known = self._wholes.get(_widths(self._findings, removal))
        if known is not None:
            return known
        work = self._work(removal, self._measured[0].seconds)
        return sum(self._interpolated(path, amount) for path, amount in work.items())

    def _interpolated(self, path: str, amount: float) -> float:
        """The seconds of a layer that does this much work."""
        found: dict[float, list[float]] = {}
        for point in self._measured:
            if path in point.seconds:
                found.setdefault(point.work[path], []).append(point.seconds[path])
        amounts = sorted(found)
        times = [statistics.median(found[one]) for one in amounts]
        if len(amounts) == 1:
            return times[0]
        right = min(max(bisect.bisect_left(amounts, amount), 1), len(amounts) - 1)
        (x0, x1), (y0, y1) = amounts[right - 1 : right + 1], times[right - 1 : right + 1]
        return y0 + (y1 - y0) * (amount - x0) / (x1 - x0)

    def _work(self, removal: Removal, layers: Mapping[str, float]) -> dict[str, float]:
        """The multiply-adds of each layer, or where it has none the elements that it makes.

        layers: the paths that are layers. What the analysis sees elsewhere belongs to the model itself, "".
        """
        macs: dict[str, float] = {}
        made: dict[str, float] = {}
        for contraction in contractions(self._findings):
            path = contraction.module if contraction.module in layers else ""
            macs[path] = macs.get(path, 0.0) + (macs_of(contraction, removal) or 0)
        for scope, elements in _elements(self._findings, removal):
            path = scope if scope in layers else ""
            made[path] = made.get(path, 0.0) + elements
        work = {path: macs.get(path) or made.get(path, 0.0) for path in layers if path != REST}
        return {**work, REST: sum(made.values())}


def contradicted(
    findings: Findings, removal: Removal, measured: tuple[float, float], file: LatencyFile, runs: Runs
) -> str:
    """A sentence, if a measurement contradicts the table in a file, which is dropped then; "" if it does not.

    measured: the seconds of the original and of the small model of a removal.
    """
    point = file.read(_about(findings, runs)).get(_widths(findings, removal))
    if point is None or not point.original or not measured[0]:
        return ""
    kept, now = point.whole / point.original, measured[1] / measured[0]
    if max(kept, now) <= CONTRADICTS * min(kept, now):
        return ""
    path = file.drop(_about(findings, runs))
    return (
        f'the table of latencies "{path}" has {kept:.1%} of the original for this model, and {now:.1%} was measured: '
        "one of them was measured on a busy machine, so the table is dropped, and the next call measures again "
        "(latency_table=False keeps none)"
    )


def _about(findings: Findings, runs: Runs | None) -> str:
    """A short text for what is measured. runs: what a call is, None or `runnable` for a forward on the inputs."""
    return _digest(findings) + ("" if runs in (None, runnable) else runs.__name__)


def _elements(findings: Findings, removal: Removal) -> Iterator[tuple[str, int]]:
    """The scope and the elements of every tensor that an operation makes."""
    for observation in findings.observed.observations.values():
        for key, results in observation.outputs.items():
            for operand in results:
                count = 1
                for vector in operand.vectors:
                    count *= removal.count(vector)
                yield key[0].partition("|")[0], count


def _widths(findings: Findings, removal: Removal) -> str:
    """A short text for the widths of a smaller model."""
    return _short(sorted(shapes_after(findings, removal).items()))


def _digest(findings: Findings) -> str:
    """A short text for everything but the machine that latencies of a model depend on."""
    modules = [(name, type(module).__qualname__, module.training) for name, module in findings.model.named_modules()]
    tensors = [(name, str(t.dtype), list(t.shape)) for name, t in findings.tensors.items()]
    inputs = torch.utils._pytree.tree_leaves(findings.inputs)
    given = [[str(x.dtype), list(x.shape)] if isinstance(x, torch.Tensor) else repr(x) for x in inputs]
    operations = [key for observation in findings.observed.observations.values() for key in observation.outputs]
    return _short([modules, sorted(tensors), given, findings.captured.path, operations])


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
