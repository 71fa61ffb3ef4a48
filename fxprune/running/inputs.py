"""The data that a model is run on: batches, as the arguments of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fxprune.capture.inputs import Inputs, bound, normalize
from fxprune.errors import InputError


def inputs_of(model: nn.Module, batches: Any, pick: Callable[[Any], Any] | None) -> list[Inputs]:
    """The arguments of the model in each batch. An iterator that can be read once only is read here, as any other.

    pick: a function that gives the inputs among what a batch holds, such as `lambda batch: batch[0]`; None if a batch
    holds nothing else.

    Raises `InputError` for what gives no batches, and for batches that do not fit the model.
    """
    if isinstance(batches, (Tensor, dict, str)) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches must be a data loader or a list of batches, not {type(batches).__name__}",
            do="pass for example `[torch.randn(64, 3, 32, 32)]`",
        )
    found = []
    for number, batch in enumerate(batches):
        try:
            inputs = normalize(batch if pick is None else pick(batch))
            bound(model, inputs)
        except InputError as error:
            raise InputError(
                "a batch does not fit the model",
                at=f"batch {number}",
                why=f"{error}: {error.why}",
                do="let a batch hold what one call takes, or pick it out: `inputs=lambda batch: batch[0]`",
            ) from None
        found.append(inputs)
    if not found:
        raise InputError("there is no batch", why="the iterable is empty", do="pass at least one batch")
    return found
