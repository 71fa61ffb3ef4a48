"""The masked reference: a copy of the original in which every removed slot is zero."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from fxprune.arguments import checks_arguments, shown
from fxprune.capture.captured import fetch
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.layouts import memory_of
from fxprune.capture.module_copy import deep_copy_with
from fxprune.capture.references import names_in, references_to_original
from fxprune.capture.tensors import Tensors, computed_tensors
from fxprune.capture.uncopied import why_no_copy
from fxprune.errors import InputError, PlanError, level_of_user, nearest
from fxprune.offloaded import refuse_dispatched
from fxprune.proof.kept_weights import kept_weights
from fxprune.proof.zeroed import zero_slots

_NOT_IN_FORWARD = ("the backward", "the state_dict", "the load_state_dict")
"""The beginnings of the sentences about hooks that change no result."""


class NamesRemoved(Protocol):
    """A plan, or the record of a small model."""

    @property
    def removed(self) -> Mapping[str, Mapping[int, Any]]:
        """Parameter or buffer name -> {dimension: indices}."""


@checks_arguments("model")
@public_call_on_model
def masked(model: nn.Module, removed: Mapping[str, Mapping[int, Any]] | NamesRemoved) -> nn.Module:
    """The masked reference: a deep copy with every removed slot of every parameter and buffer set to zero.

    Where a layer divides its weight by a norm (`weight_norm`, `spectral_norm`), what stays of the weight keeps its
    values: `g` or `u` carries the ratio of the norms. A removed row of a weight norm is zero by its `g` alone, since
    0 / |0| is no number.

    A hook that closes over a part of the original, and not over its own module, goes on using that: a warning names it.

    Args:
        model: the original, which is not changed.
        removed: parameter or buffer name -> {dimension: indices}, as in `Plan.removed` and `record(small).removed`; or
            the plan or the record itself.

    Raises `PlanError` if the model has no such parameter or buffer, or cannot be copied.

    >>> import torch, fxprune
    >>> net = torch.nn.Linear(2, 3)
    >>> fxprune.masked(net, {"bias": {0: [1]}}).bias[1].item()
    0.0
    """
    removed = _as_mapping(removed)
    refuse_dispatched(model, "masked")
    copied = _copy(model)
    with torch.no_grad():
        for name, dims in removed.items():
            try:
                tensor = fetch(copied, name)
            except AttributeError:
                raise PlanError(
                    f'the model has no parameter "{name}"',
                    why=nearest(name, [n for n, _ in model.named_parameters()]),
                    do="use the model that the plan was made for",
                ) from None
            _check_slots(name, tensor, dims)
        kept = kept_weights(copied, removed)
        _refuse_shared(model, copied, [*kept.zeroed, *kept.values])
        for name, dims in kept.zeroed.items():
            zero_slots(fetch(copied, name), dims)
        for name, values in kept.values.items():
            fetch(copied, name).copy_(values)
    written = {*kept.zeroed, *kept.values}
    _warn_of_originals(model, copied, {name for name in written if _differs(fetch(model, name), fetch(copied, name))})
    return copied


def _warn_of_originals(model: nn.Module, copied: nn.Module, changed: Collection[str]) -> None:
    """Warn of code of the copy, such as hooks, that uses parts of the original where those of the copy are zero.

    changed: the names of the tensors that are others in the copy.
    """
    owners = {name.rpartition(".")[0] for name in changed}
    named = {id(fetch(model, name)) for name in changed}
    named |= {id(one) for path, one in model.named_modules() if any(_is_within(owner, path) for owner in owners)}
    known = {key: text for key, text in names_in(model, Tensors.of(model)).items() if key in named}
    told = [text for text in references_to_original(known, copied) if not text.startswith(_NOT_IN_FORWARD)]
    if told:
        more = f" (and {len(told) - 1} more such places)" if told[1:] else ""
        warnings.warn(
            f"slots are zero in the copy alone: {told[0]}{more}, which keeps its numbers. Let that code take it from "
            "an attribute of a module of the model",
            UserWarning,
            stacklevel=level_of_user(),
        )


def _differs(original: torch.Tensor, copied: torch.Tensor) -> bool:
    """True if two tensors of one shape have different numbers, or no numbers."""
    return original.is_meta or not torch.equal(original, copied)


def _is_within(path: str, outer: str) -> bool:
    """True if a module is another one or is inside it, by their paths."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def _as_mapping(removed: Any) -> Mapping[str, Mapping[int, Any]]:
    given = removed if isinstance(removed, Mapping | nn.Module) else getattr(removed, "removed", removed)
    if isinstance(given, Mapping) and all(isinstance(dims, Mapping) for dims in given.values()):
        return given
    found = type(given).__name__
    if isinstance(given, Mapping):
        name, value = next((name, dims) for name, dims in given.items() if not isinstance(dims, Mapping))
        found = f"{{{name!r}: {shown(value)}}}"
    raise InputError(
        f"removed must be a mapping {{name: {{dimension: indices}}}}, not {found}",
        at=f"masked(removed={shown(removed)})",
        do="pass record(small).removed, a record, or a plan",
    )


def _copy(model: nn.Module) -> nn.Module:
    memo = computed_tensors(model)
    try:
        return deep_copy_with(model, memo)
    except Exception as error:
        at, why, do = why_no_copy(model, memo, error)
        raise PlanError(f"{type(model).__name__} cannot be copied", at=at, why=why, do=do) from error


def _refuse_shared(model: nn.Module, copied: nn.Module, names: Iterable[str]) -> None:
    """Raises `PlanError` if a tensor that has to change is still that of the original."""
    for name in names:
        if memory_of(fetch(copied, name)) == memory_of(fetch(model, name)):
            raise PlanError(
                f"{type(model).__name__} cannot be copied",
                at=f'"{name}"',
                why="a `__deepcopy__` of the model gives the tensor of the original, which would be set to zero",
                do="let that method copy its tensors, or leave it out",
            )


def _check_slots(name: str, tensor: Any, dims: Mapping[int, Any]) -> None:
    """Raises `PlanError` for what is no parameter or buffer, and for slots that it does not have."""
    if not isinstance(tensor, torch.Tensor):
        what = f'"{name}" is no parameter or buffer'
        raise PlanError(what, why=f"it is a {type(tensor).__name__}", do="pass names of parameters")
    for dim, indices in dims.items():
        try:
            slots = torch.as_tensor(indices, device="cpu").tolist()
        except (TypeError, ValueError, RuntimeError):
            slots = [None]
        listed = slots if isinstance(slots, list) else [slots]
        known = range(tensor.shape[dim]) if 0 <= dim < tensor.ndim else range(0)
        if not all(isinstance(slot, int) and slot in known for slot in listed):
            raise PlanError(
                f"these are no indices of dimension {dim}: {shown(indices)}",
                at=f'"{name}"',
                why=f"its shape is {tuple(tensor.shape)}",
                do="pass {dimension: indices}, as in `record(small).removed`",
            )
