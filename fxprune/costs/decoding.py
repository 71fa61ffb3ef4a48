"""One step of decoding: the forward on the last token, with the cache that the forward on the inputs returns."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.capture.inputs import Inputs
from fxprune.costs.cache import tensors_of_caches
from fxprune.costs.latency import Runnable, runnable
from fxprune.errors import CaptureError, text_of


@contextlib.contextmanager
def decoding(model: nn.Module, inputs: Inputs) -> Iterator[Runnable]:
    """A copy of the model as `runnable` makes it, whose call is a step of decoding after the example inputs.

    Each call makes the cache one token longer.

    Raises `CaptureError` for a model that returns no cache which its forward takes under the same name.
    """
    with runnable(model, inputs) as whole:
        step = next_step(whole.module, inputs, whole.call())

        def call() -> Any:
            try:
                with torch.inference_mode():
                    return whole.module(**step)
            except Exception as error:
                raise CaptureError(
                    "a step of decoding raises", raised=True, why=text_of(error),
                    do="check that forward takes the last token alone, with its cache",
                ) from error  # fmt: skip

        yield replace(whole, call=call)


def next_step(model: nn.Module, inputs: Inputs, result: Any) -> dict[str, Any]:
    """The keywords of the next call: the last token, and the caches in the result.

    What has one entry for each token, such as a mask, is left out; everything else is as before.

    result: that of the call with the inputs.
    Raises `CaptureError` where there is no cache, and where the inputs have no tokens.
    """
    args, kwargs = inputs
    signature = inspect.signature(model.forward)
    given = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    caches = {name: value for name, value in _named(result).items() if tensors_of_caches(value)}
    taken = {name: value for name, value in caches.items() if name in signature.parameters}
    tokens = next((name for name, value in given.items() if _is_tokens(value)), None)
    if not taken or tokens is None:
        names = ", ".join(caches) or "no object with tensors"
        raise CaptureError(
            "the latency of decoding cannot be measured",
            at=type(model).__name__,
            why="the inputs have no tokens, integers of two dimensions" if tokens is None and taken else
            f"forward takes nothing by the name of a cache that it returns; it returns {names}",
            do='limit "latency", that of the example inputs, instead of "decode_latency"',
        )  # fmt: skip
    length = given[tokens].shape[1]
    left = {name: value for name, value in given.items() if not _has_length(value, length)}
    return {**left, tokens: given[tokens][:, -1:], **taken}


def _named(result: Any) -> dict[str, Any]:
    """The parts of a result that have names."""
    if isinstance(result, Mapping):
        return dict(result)
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: getattr(result, field.name) for field in fields(result)}
    return {}


def _is_tokens(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()


def _has_length(value: Any, length: int) -> bool:
    """True for a tensor with an entry for each token."""
    return isinstance(value, torch.Tensor) and length in value.shape[1:]
