"""`verify`, which compares a small model with its reference."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune._analyze import analyze
from fxprune._dropping import error_without_branches
from fxprune._find import AnalyzeArguments
from fxprune._record import checksum, record_since, steps_in
from fxprune._record.repaired import Repair
from fxprune._repair.original import has_other_weights, refitted
from fxprune.analysis.findings import Findings
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.arguments import checks_arguments
from fxprune.capture.inputs import check_plain, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.module_copy import copy_module
from fxprune.capture.output_paths import narrowed, output_paths
from fxprune.capture.program import as_module
from fxprune.capture.tensors import Tensors
from fxprune.configs import has_config
from fxprune.depth.numbering import in_original_numbering
from fxprune.errors import CaptureError, InputError, OtherWeightsWarning, VerificationError, counted, level_of_user
from fxprune.fold import resolve_plan
from fxprune.planning.uniform import with_config
from fxprune.proof.compare import prove
from fxprune.proof.original import error_of_original
from fxprune.proof.other_arguments import other_arguments
from fxprune.proof.result import NoReferenceError, Proof
from fxprune.rewrite.factors import multiplied
from fxprune.rewrite.graph import rewrite, scale_factors
from fxprune.rewrite.kept_weights import own_numbers

WRONG = 1e-6
"""An error above which `verify` asks whether the small model was made from other weights than those of the model."""

MADE_FROM_OTHER = (
    "the small model was made from other weights than those of this model, so that the two cannot be equal. "
    "Pass the model that it was made from"
)

OTHER_ORIGINAL = "this original has other weights than the one that it was made from"
"""The end of a sentence about tensors that no repair explains."""


@checks_arguments("model", "small", "methods")
@public_call_on_model
def verify(
    model: nn.Module | ExportedProgram,
    small: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    methods: Mapping[str, Any] | None = None,
    outputs: Any = None,
) -> float:
    """The relative error of a small model against its reference.

    The reference is `masked(model, record(small).zeroed)`; residual branches that went whole (`drop`) add zeros in it,
    which zeros in slots do not say. Where the removal changed a statistic (see `norms` of
    `transform`), the reference takes that statistic over the kept channels. Both run in float64 and evaluation mode; an
    error up to 1e-9 is rounding there. Where the original does not run in float64, both run in float32 (1e-4) or in
    their own types (5e-2): a `UserWarning` says which, up to which error that is rounding, and why.

    If the weights of `small` are no longer those that it was made with, because it was repaired or trained, they cannot
    equal those of the reference. Then its code and sizes are proven with the weights of the original in it, and an
    `OtherWeightsWarning` says so. It says too where `model` has other weights than the one that `small` was made from,
    which was not changed since. A model counts as trained if most numbers of some tensor are others. A model that was
    pruned in several steps is compared with any of the models before a step: the steps since count as one.

    Args:
        model: the original.
        small: the model that `transform` made from it.
        example_inputs, methods: as for `transform`. They may be different ones, also in their sizes.
        outputs: the parts of the result to compare, as for `transform`; by default those that counted there.

    Returns the largest max |small - reference| / max |reference| of all outputs; inf if shapes differ, or if a number
    is not finite in one of them only. Raises `PlanError` if `small` was not made from `model`, and `VerificationError`
    if the small model raises where the original does not, or computes with another scale.
    """
    return compared(model, small, example_inputs, methods=methods, outputs=outputs).error


@public_call_on_model
def compared(
    model: nn.Module | ExportedProgram,
    small: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    methods: Mapping[str, Any] | None = None,
    outputs: Any = None,
) -> Proof:
    """The proof whose error `verify` returns, with the precision that it was made in. For arguments see `verify`."""
    if isinstance(small, nn.Module):
        check_plain(small, Tensors.of(small))
    refuse_swapped(model, small)
    recorded = copy_module(as_module(model, example_inputs), lambda tensor: tensor)
    made = record_since(small, recorded)
    for name, module in recorded.named_modules():
        module.training = name in made.training
    counting = narrowed(made.plan.outputs, output_paths(outputs))
    listed = None if counting is None else list(counting)
    options: dict[str, Any] = {"path": made.path, "norms": made.norms}
    without = 0.0
    if made.plan.dropped:
        whole = AnalyzeArguments(recorded, example_inputs, methods=methods)
        recorded, without = error_without_branches(whole, made.plan.dropped)
    analysis: Findings = analyze(recorded, example_inputs, methods=methods, outputs=listed, **options)
    if _has_other_config(recorded, small):
        analysis = with_config(analysis)
    resolved = resolve_plan(analysis, replace(made.plan, structure=None))
    factors = scale_factors(analysis, resolved.removal) if made.plan.factors else ScaleFactors()
    exact = {**own_numbers(analysis, resolved.removal), **resolved.constants.exact}
    exact = multiplied(analysis, resolved.removal, factors, exact)
    folded = None if made.plan.zeroed is None else resolved.constants
    plain = in_original_numbering(as_module(small, example_inputs), made.layers_gone)
    if made.steps > 1 or (made.weights and made.weights != checksum(plain)):
        own = rewrite(analysis, resolved.removal, resolved.constants).small
        text = _other_weights(plain, own, made.repair)
        if text:
            warnings.warn(text, OtherWeightsWarning, stacklevel=level_of_user())
            plain = _with_tensors_of(plain, own)
    with _explained(analysis, other_arguments(plain, recorded, normalize(example_inputs))) as explained:
        proof = prove(analysis, plain, resolved.removal, resolved.zeroed, exact, factors, folded=folded)
        explained(_is_wrong(proof))
    if _is_wrong(proof) and made.steps == 1 and has_other_weights(recorded, plain, made):
        warnings.warn(MADE_FROM_OTHER, OtherWeightsWarning, stacklevel=level_of_user())
    if proof.blind:
        warnings.warn(proof.blind, UserWarning, stacklevel=level_of_user())
    if proof.instead:
        warnings.warn(proof.instead, UserWarning, stacklevel=level_of_user())
    return replace(proof, error=max(proof.error, without))


def _is_wrong(proof: Proof) -> bool:
    """True if the error is more than rounding, and more than what the weights of another model can explain."""
    return proof.error > max(WRONG, proof.precision.tolerance)


@contextlib.contextmanager
def _explained(analysis: Findings, other: InputError | None) -> Iterator[Callable[[bool], None]]:
    """Raises `other`, if there is one, where the small model raises. Gives a function that does if it is wrong."""

    def explained(wrong: bool) -> None:
        if wrong and other is not None:
            raise other

    try:
        yield explained
    except VerificationError as wrong:
        raise (other or wrong) from (wrong if other else None)
    except NoReferenceError as wrong:
        raise error_of_original(analysis) or CaptureError(
            "the model's forward raises",
            raised=True,
            why=str(wrong),
            do="check that the model runs on these example inputs",
        ) from wrong


def refuse_swapped(
    model: nn.Module | ExportedProgram, small: nn.Module | ExportedProgram, call: str = "verify"
) -> None:
    """Raises `InputError` if the first model was made by `transform`, and the second was not."""
    if steps_in(small) is None and steps_in(model) is not None:
        raise InputError(
            "the two models stand the other way round",
            why="the first one has the record of a small model, the second has none",
            do=f"call {call}(model, small, example_inputs), the original first",
        )


def _has_other_config(model: Any, small: Any) -> bool:
    """True if the config says the small model: it was made with uniform="config"."""
    return has_config(model) and has_config(small) and bool(model.config.to_dict() != small.config.to_dict())


def _other_weights(small: nn.Module, own: nn.Module, repair: Repair | None) -> str:
    """A sentence about the tensors that are not those of the original; "" for a model that was not trained.

    own: the small model with the weights of the original. repair: what is known of its repair.
    """
    ours, theirs = Tensors.of(small), Tensors.of(own)
    if any(name not in ours or ours[name].shape != tensor.shape for name, tensor in theirs.items()):
        return ""
    shares = {name: _share_of_others(ours[name], tensor) for name, tensor in theirs.items()}
    others = [name for name, share in shares.items() if share]
    if not others or not (repair or max(shares.values()) > 0.5):
        return ""
    explained = {id(ours[name]) for name in others if repair is not None and refitted(name, repair)}
    rest = [name for name in others if id(ours[name]) not in explained]
    cause = f"trained, or changed otherwise, or {OTHER_ORIGINAL}" if repair is None else "repaired"
    told = (
        f"the weights of the small model are not those of the original, since it was {cause}: {len(others)} of "
        f"{counted(len(shares), 'tensor')} {'differs' if len(others) == 1 else 'differ'}"
    )
    if repair is not None and rest:
        of_repair = len(others) - len(rest)
        told += f". The repair can have changed {of_repair} of them, but not " if of_repair else ". The repair left "
        told += f'"{rest[0]}"{" and others" * (len(rest) > 1)}: the model was trained since, or {OTHER_ORIGINAL}'
    else:
        told += f', such as "{others[0]}"'
    return f"{told}. So the plan is proven with the weights of the original; measure what it is worth on your data"


def _share_of_others(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The share of the numbers that differ, beyond the rounding to the type of `ours`."""
    if not ours.numel():
        return 0.0
    rounded = theirs.to(device=ours.device, dtype=ours.dtype)
    return float(((ours != rounded) & ~(ours.isnan() & rounded.isnan())).double().mean())


def _with_tensors_of(small: nn.Module, own: nn.Module) -> nn.Module:
    """A copy of the small model with the numbers of another one in its parameters and buffers."""
    ours, theirs = Tensors.of(small), Tensors.of(own)
    numbers = {id(ours[name]): tensor for name, tensor in theirs.items()}

    def swapped(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in numbers:
            return tensor
        made = numbers[id(tensor)].detach().to(device=tensor.device, dtype=tensor.dtype, copy=True)
        return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

    memo: dict[int, torch.Tensor] = {}
    return copy_module(small, lambda tensor: memo.setdefault(id(tensor), swapped(tensor)))
