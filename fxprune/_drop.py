"""Residual branches that go before any channel does: found, replaced, and compared with the original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fxprune._find import AnalyzeArguments
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.file_state import Code
from fxprune.capture.inputs import Inputs, normalize
from fxprune.capture.methods import call_method, method_calls
from fxprune.capture.model_form import HOOKS
from fxprune.capture.modes import RunMode, doubled, random_decisions, set_mode
from fxprune.capture.process_state import clean_caches, same_random_state, silence
from fxprune.capture.program import as_module
from fxprune.capture.reads import Reads, watched_reads
from fxprune.capture.values import map_tensors
from fxprune.costs import Cost, cost
from fxprune.depth.branches import Branch, branches_of
from fxprune.depth.carry_out import replace_modules, tensors_of, without_dropped
from fxprune.depth.dropped import OWN as OWN_KINDS
from fxprune.depth.dropped import Dropped, Replacement
from fxprune.depth.flow import Flow
from fxprune.depth.following import flow_of
from fxprune.depth.gone import by_addition
from fxprune.depth.reference import DroppedAdditions
from fxprune.depth.replacing import replacements
from fxprune.depth.select import selected
from fxprune.depth.whole_layers import beside_layers, whole_layers
from fxprune.errors import CaptureError, VerificationError, text_of
from fxprune.progress import long_step
from fxprune.proof.copies import Copies
from fxprune.proof.deterministic import deterministic
from fxprune.proof.difference import relative_error
from fxprune.proof.precision import FLOAT32, FLOAT64, OWN, Precision

STANDS_IN = "modules of fxprune take the place of"
"""The beginning of a sentence about a model that needs this package."""


@dataclass(frozen=True, eq=False)
class ComparedCall:
    """A call of a model on which branches are looked for and compared.

    training: the mode, None as it was given. gradients: True if gradients are recorded.
    """

    inputs: Inputs
    method: str = ""
    training: bool | None = None
    gradients: bool = False

    def of(self, module: nn.Module, inputs: Inputs) -> Any:
        """The result of the call, on a copy of the model."""
        if self.training is not None:
            set_mode(module, self.training)
        with torch.set_grad_enabled(self.gradients):
            made = call_method(module, self.method, inputs) if self.method else module(*inputs[0], **inputs[1])
        return map_tensors(made, torch.Tensor.detach) if self.gradients else made


@dataclass(frozen=True, eq=False)
class Branches:
    """The residual branches of a model, and the calls and flows in which they were found."""

    model: nn.Module
    calls: tuple[ComparedCall, ...]
    flows: tuple[Flow, ...]
    cost: Cost
    branches: tuple[Branch, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class WithoutBranches:
    """A model without some branches. error: of the comparison with the original, None if there was none."""

    model: nn.Module
    dropped: tuple[Dropped, ...]
    error: float | None
    reasons: tuple[str, ...] = ()


def find_branches(call: AnalyzeArguments) -> Branches:
    """The residual branches of a model. Raises `CaptureError` if it does not run."""
    model = as_module(call.model, call.example_inputs)
    inputs, more = normalize(call.example_inputs), [normalize(other) for other in call.also]
    calls = [ComparedCall(given) for given in (inputs, *more)]
    calls += [ComparedCall(method.inputs, method.name) for method in method_calls(model, call.methods)]
    with long_step("search for branches"):
        return _branches(call, model, calls)


def _branches(call: AnalyzeArguments, model: nn.Module, calls: list[ComparedCall]) -> Branches:
    """The residual branches that the calls go through."""
    runs, notes = list[tuple[ComparedCall, Flow]](), list[str]()
    for number, one in enumerate(calls):
        runs += _runs(model, one, notes, both_modes=number == 0)
    whole = cost(model, call.example_inputs)
    made, flows = [one for one, _ in runs], [flow for _, flow in runs]
    return Branches(model, tuple(made), tuple(flows), whole, branches_of(model, flows, whole), tuple(notes))


def _runs(
    model: nn.Module, first: ComparedCall, notes: list[str], *, both_modes: bool
) -> Iterator[tuple[ComparedCall, Flow]]:
    """The runs of one call, with their flows: in the given mode, and in those that differ by what code has asked.

    both_modes: True to run in the other mode in any case. notes: gets a sentence about each mode that raises.
    """
    reads = Reads()
    yield first, _flow(model, first, reads)
    todo, done = [RunMode(model.training)], {RunMode(model.training)}
    while todo:
        mode = todo.pop(0)
        other, recording = RunMode(not mode.training, mode.gradients), RunMode(mode.training, not mode.gradients)
        further = [other] * bool(reads.modes or both_modes) + [recording] * reads.gradients
        for new in (new for new in further if new not in done):
            done.add(new)
            todo.append(new)
            training = None if new.training == model.training else new.training
            try:
                yield _in_mode(model, replace(first, training=training, gradients=new.gradients), reads)
            except CaptureError as error:
                where = new.text(model.training).removeprefix("in ")
                notes.append(f"branches were not looked at in {where}: {error.first_why}")


def _in_mode(model: nn.Module, call: ComparedCall, reads: Reads) -> tuple[ComparedCall, Flow]:
    """A run in another mode: of a model in evaluation mode on the inputs twice, where one batch raises."""
    tries = [call] + [replace(call, inputs=doubled(call.inputs))] * bool(call.training)
    for one in tries[:-1]:
        with contextlib.suppress(CaptureError):
            return one, _flow(model, one, reads)
    return tries[-1], _flow(model, tries[-1], reads)


def _flow(model: nn.Module, call: ComparedCall, reads: Reads | None = None) -> Flow:
    """The flow of one call, on fake tensors if these do. reads: gets what its code asks."""
    files = Code.of(model).files
    error: Exception | None = None
    weightless = any(t.device.type == "meta" for t in tensors_of(model).values())
    for faker in (Faker(),) if weightless else (Faker(), Real()):
        module, inputs = faker.module(model), faker.tree(call.inputs)
        kept = (clean_caches(model), silence(), same_random_state(), faker.mode, random_decisions())
        try:
            with contextlib.ExitStack() as stack:
                for mode in kept:
                    stack.enter_context(mode)
                stack.enter_context(watched_reads(module, reads or Reads(), files, torchs=False))
                return flow_of(module, partial(call.of, module, inputs))
        except Exception as raised:
            error = error or raised
            last = raised
    raise CaptureError(
        "the model's forward raises",
        raised=True,
        why=text_of(last),
        do="check that the model runs on these example inputs",
    ) from last


def drop(found: Branches, patterns: Any) -> WithoutBranches:
    """The model without the branches that patterns name.

    Raises `PlanError` if they name none, `VerificationError` if no replacement of their modules computes the same as
    the original with zeros added.
    """
    return without(found, selected(found.model, found.branches, patterns))


def drop_layers(call: AnalyzeArguments, found: Branches, patterns: Any) -> WithoutBranches | None:
    """The model without what patterns name, where layers go whole among them; None if none does.

    Raises the errors of `drop`, and `PlanError` for a layer that cannot go whole.
    """
    branches = selected(found.model, found.branches, patterns)
    layers = whole_layers(found.model, found.flows, branches, patterns)
    if not layers:
        return None
    model = without_dropped(found.model, layers)
    text = f"layers went whole, with what stands behind their additions: {', '.join(map(str, layers))}"
    notes = (*found.notes, text, *given_up(found.model, layers))
    rest = {branch.name for branch in beside_layers(branches, layers)}
    left = find_branches(replace(call, model=model))
    made = without(left, [branch for branch in left.branches if branch.name in rest])
    return replace(made, dropped=(*layers, *made.dropped), reasons=(*notes, *made.reasons))


def without(found: Branches, branches: Sequence[Branch]) -> WithoutBranches:
    """The model without some of its branches: see `drop`."""
    model = found.model
    failed: list[tuple[tuple[Replacement, ...], VerificationError]] = []
    for blocks, plain in ((True, True), (True, False), (False, True), (False, False)):
        made = replacements(model, found.flows, branches, blocks=blocks, plain=plain)
        if made in [tried for tried, _ in failed]:
            continue
        dropped = _dropped(model, branches, made)
        smaller = without_dropped(model, dropped)
        try:
            error = compared(found, smaller, branches)
        except VerificationError as wrong:
            failed.append((made, wrong))
            continue
        return WithoutBranches(smaller, dropped, error, (*found.notes, *given_up(model, dropped)))
    raise failed[0][1]


def _dropped(model: nn.Module, branches: Sequence[Branch], made: Sequence[Replacement]) -> tuple[Dropped, ...]:
    """The entry of the plan for each branch. A replaced block that covers several belongs to the last of them."""
    owner = {r: max((n for n, b in enumerate(branches) if _belongs(r, b)), default=len(branches) - 1) for r in made}
    found = []
    smaller = without_dropped(model, ())
    for number, branch in enumerate(branches):
        own = tuple(r for r in made if owner[r] == number)
        before = tensors_of(smaller)
        replace_modules(smaller, own)
        after = tensors_of(smaller)
        gone = {name: tuple(t.shape) for name, t in before.items() if name not in after}
        found.append(Dropped(branch.name, branch.at, own, gone))
    return tuple(found)


def _belongs(replacement: Replacement, branch: Branch) -> bool:
    path = replacement.path
    return path in branch.modules or any(m.startswith(f"{path}.") for m in branch.modules)


def given_up(model: nn.Module, dropped: Sequence[Dropped]) -> Iterator[str]:
    """Sentences about what the model without the branches does not have: hooks, and pickles that load anywhere."""
    hooked = list(dict.fromkeys(path for one in dropped for r in one.replaced for path in _hooked(model, r)))
    if hooked:
        listed = ", ".join(f'"{path}"' for path in hooked[:3]) + (f" and {len(hooked) - 3} more" if hooked[3:] else "")
        yield f"hooks go with the branches: those of {listed}"
    own = [r.path for one in dropped for r in one.replaced if r.kind in OWN_KINDS]
    if own:
        listed = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if own[3:] else "")
        yield f"{STANDS_IN} {listed}, so that a pickled model needs fxprune"


def _hooked(model: nn.Module, replaced: Replacement) -> Iterator[str]:
    """The paths of the modules with hooks that are replaced, or lie in one that is."""
    for path, module in model.get_submodule(replaced.path).named_modules(prefix=replaced.path):
        inside = path.removeprefix(replaced.path).lstrip(".").partition(".")[0]
        if inside not in replaced.children and any(getattr(module, hooks) for hooks in HOOKS):
            yield path


# -- the comparison ------------------------------------------------------------------------------------------


def compared(found: Branches, smaller: nn.Module, branches: Sequence[Branch]) -> float | None:
    """The relative error of a model without branches against the original with zeros added instead; None without
    weights. Raises `VerificationError` if it is wrong, or raises."""
    places = by_addition(branch.place for branch in branches)
    if any(t.device.type == "meta" for t in tensors_of(found.model).values()):
        for call in found.calls:
            _guarded(partial(_flow, smaller, call))
        return None
    error = 0.0
    with clean_caches(found.model):
        for call in found.calls:
            error = max(error, _error(found.model, smaller, call, places))
        first = found.calls[0]
        module = _copy(smaller, OWN)
        with torch.no_grad(), same_random_state(), silence():
            _guarded(lambda: first.of(module, OWN.copies(first.inputs)))  # with the fused kernels of torch
    return error


def compared_whole(model: nn.Module, smaller: nn.Module, call: AnalyzeArguments) -> float | None:
    """The relative error of a model against another one in all calls; None without weights.

    Raises `VerificationError` if it is wrong, or raises.
    """
    calls = [ComparedCall(normalize(given)) for given in (call.example_inputs, *call.also)]
    calls += [ComparedCall(method.inputs, method.name) for method in method_calls(model, call.methods)]
    if any(t.device.type == "meta" for t in tensors_of(model).values()):
        for one in calls:
            _guarded(partial(_flow, smaller, one))
        return None
    with clean_caches(model):
        return max(_error(model, smaller, one, {}) for one in calls)


def _error(model: nn.Module, smaller: nn.Module, call: ComparedCall, places: Any) -> float:
    failed: Exception | None = None
    for precision in (FLOAT64, FLOAT32, OWN):
        try:
            reference = _run(model, call, precision, places)
        except Exception as raised:
            failed = failed or raised
            continue
        made = _guarded(partial(_run, smaller, call, precision, {}))
        error = relative_error(made, reference)
        if not error <= precision.tolerance:
            raise VerificationError(
                "the model without the branches computes something else",
                why=f"its outputs differ by {error:.1e} from the original with zeros added instead",
                do="leave these branches out of drop, and report it",
            )
        return error
    assert failed is not None
    raise CaptureError(
        "the model's forward raises",
        raised=True,
        why=text_of(failed),
        do="check that the model runs on these example inputs",
    ) from failed


def _run(model: nn.Module, call: ComparedCall, precision: Precision, places: Any) -> Any:
    module = _copy(model, precision)
    mode = DroppedAdditions(module, places)
    with deterministic(precision), silence(), mode.watching():
        return call.of(module, precision.copies(call.inputs))


def _copy(model: nn.Module, precision: Precision) -> nn.Module:
    modes = {path: module.training for path, module in model.named_modules()}
    return Copies(model, precision=precision).module(lambda path: modes[path])


def _guarded(run: Callable[[], Any]) -> Any:
    """The result of a run of the smaller model. Raises `VerificationError` if it raises."""
    try:
        return run()
    except Exception as error:
        raise VerificationError(
            "the model without the branches raises",
            why=text_of(error),
            do="leave these branches out of drop, and report it",
        ) from error
