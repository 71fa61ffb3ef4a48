"""Errors of `torch.export`, told as those of fxprune: the module, the line, the reason and the next step."""

from __future__ import annotations

from torch import nn

from fxprune.capture.error_place import line_of, module_of_error
from fxprune.capture.export_refusals import first_sentence, next_step
from fxprune.errors import CaptureError


def not_exported(failure: BaseException, model: nn.Module, *, batch: bool, fixed: bool) -> CaptureError:
    """The error for a model that torch does not export.

    batch: True if a dynamic batch was asked for. fixed: True if the model can be exported for one size of batch.
    """
    line = line_of(failure)
    place = module_of_error(failure, model) or "the model"
    return CaptureError(
        f"{type(model).__name__} cannot be exported" + (" with a dynamic batch" if batch and fixed else ""),
        at=f"{place} ({line})" if line else "",
        why=first_sentence(failure),
        do="leave out dynamic_batch, or change what fixes the batch"
        if batch and fixed
        else f"{next_step(failure, line)}; `fxprune.save` writes the weights without a graph",
    )
