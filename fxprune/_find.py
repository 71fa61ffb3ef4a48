"""The findings of a model on the first path that captures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from fxprune.analysis.analyzer import Analyzer
from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.single_layers import analyze_single_layers
from fxprune.arguments import why_no_model
from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.equal_modules import check_told_apart
from fxprune.capture.error_place import in_a_distribution
from fxprune.capture.example_numbers import by_numbers
from fxprune.capture.inputs import (
    Inputs,
    check_devices,
    check_initialised,
    check_plain,
    check_unhooked,
    check_unwrapped,
    normalize,
)
from fxprune.capture.methods import MethodCall, method_calls
from fxprune.capture.output_paths import output_paths
from fxprune.capture.program import as_module
from fxprune.capture.tensors import Tensors
from fxprune.errors import CaptureError, PlanError
from fxprune.offloaded import is_dispatched
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks
from fxprune.progress import long_step
from fxprune.rewrite.kept_weights import keep_weights
from fxprune.rewrite.norms import preserve

NORMS = ("kept", "preserve")
"""The values of `norms`: statistics are taken over the kept channels, or preserved where that is exactly possible."""


@dataclass(frozen=True, eq=False)
class AnalyzeArguments:
    """The arguments of `analyze`, some of which `transform` has too. norms: None where they are not given."""

    model: Any
    example_inputs: Any
    also: Sequence[Any] = ()
    methods: Mapping[str, Any] | None = None
    strict: bool = False
    path: str | None = None
    prefer: str | None = None
    norms: str | None = None
    outputs: Any = None


def class_kept(call: AnalyzeArguments) -> AnalyzeArguments:
    """The arguments, with prefer="class" for a model that accelerate has dispatched: its hooks are on modules.

    Raises `PlanError` where a graph is asked for, `CaptureError` for equal modules.
    """
    check_told_apart(call.model)
    if not is_dispatched(call.model):
        return call
    if call.prefer == "graph" or (call.path is not None and not paths_for(call.model, call.path, None)[0].keeps_class):
        raise PlanError(
            "a dispatched model cannot become a graph",
            at=f"path={call.path!r}" if call.path is not None else f"prefer={call.prefer!r}",
            why="accelerate has hooks on its modules, which a graph has not",
            do="leave path and prefer out, or prune before the model is dispatched",
        )
    return replace(call, prefer="class" if call.path is None else None)


def find(call: AnalyzeArguments) -> Findings:
    """The findings of a model, on the first path that captures it. Raises the errors of `analyze`."""
    call = class_kept(call)
    model = as_module(call.model, call.example_inputs)
    if not isinstance(model, nn.Module):
        why, do = why_no_model(model)
        raise CaptureError("not a model", why=why, do=do)
    paths = without_hooks(paths_for(model, call.path, call.prefer))
    inputs, more = normalize(call.example_inputs), [normalize(other) for other in call.also]
    counting = output_paths(call.outputs)
    check_unwrapped(model)
    tensors = Tensors.of(model)
    check_initialised(tensors)
    check_plain(model, tensors)
    check_unhooked(model)
    methods = method_calls(model, call.methods)
    for given in (inputs, *more, *(method.inputs for method in methods)):
        check_devices(tensors, given)
    if call.norms not in (None, *NORMS):
        raise PlanError(
            f"there are no norms {call.norms!r}", why='norms is "kept" or "preserve"', do='pass "kept", or "preserve"'
        )

    def on(path: FrontEnd) -> Findings:
        with long_step(f"analysis ({path.name})"):
            captured = _captured(model, inputs, path, methods)
            subject = Subject(model, tensors, captured, inputs, tuple(more), counting, methods)
            return _findings(subject, strict=call.strict, norms=call.norms)

    return try_in_turn(paths, on).get()


def _captured(model: nn.Module, inputs: Inputs, path: FrontEnd, methods: Sequence[MethodCall]) -> Captured:
    """The model, captured on one path. Raises `CaptureError` for methods on a path that makes a graph."""
    if methods and not path.keeps_class:
        raise CaptureError(
            f"methods cannot be observed on the path {path.name}",
            why=f"a graph is forward alone, and has no {methods[0].name}",
            do='leave out `methods`, or take a path that keeps the class (path="eager")',
        )
    return capture(model, inputs, path)


def _findings(subject: Subject, *, strict: bool, norms: str | None) -> Findings:
    findings = keep_weights(_walked(subject, strict=strict))
    return preserve(findings) if norms == "preserve" else findings


def _walked(subject: Subject, *, strict: bool) -> Findings:
    captured = subject.captured
    if captured.needs_hooks:
        return analyze_single_layers(subject, strict=strict)
    try:
        return Analyzer(subject, strict=strict).run()
    except CaptureError as error:
        if captured.has_graph or not error.raised or captured.tensors.weightless or by_numbers(error):
            raise
        captured = replace(captured, real=True, notes=(*captured.notes, _why_real(error)))
        return Analyzer(replace(subject, captured=captured), strict=strict).run()


def _why_real(error: CaptureError) -> str:
    """The note about a forward that does not run on fake tensors."""
    place = f" at {error.at}" if error.at else ""
    if error.__cause__ is not None and in_a_distribution(error.__cause__):
        return (
            f"the check of the arguments of a distribution reads numbers{place}, so the forward was observed on real "
            "tensors; where it decides by no other numbers there is nothing to do (`validate_args=False` is without it)"
        )
    decides = not isinstance(error.__cause__, FakeTensorDeviceMismatchError)  # else a formula of torch is at fault
    cause = "the forward decides by numbers" if decides else "torch cannot run the forward on fake tensors"
    note = f"{cause}{place}, so it was observed on real tensors, and other numbers may take another way: pass "
    return f"{note}inputs that do as `also=` ({error.first_why})"
