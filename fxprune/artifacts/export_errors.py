"""Errors of `torch.export`, told as those of fxprune: the module, the line, the reason and the next step."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fxprune.capture.error_place import in_a_distribution, line_of, locals_of, module_of_error
from fxprune.errors import CaptureError

_KEEPS_CODE = "; `fxprune.save` writes the weights without a graph"


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
        do="leave out dynamic_batch, or change what fixes the batch" if batch and fixed else _next_step(failure, line),
    )


def _next_step(failure: BaseException, line: str) -> str:
    if any(isinstance(value, PackedSequence) for value in locals_of(failure)):
        return f"give the recurrent layer padded tensors, since torch.export takes no PackedSequence{_KEEPS_CODE}"
    if in_a_distribution(failure):
        how = "leave out `validate_args=True`, since a distribution that checks its arguments reads numbers, which"
        return f"{how} torch.export does not know{_KEEPS_CODE}"
    code = "this line" if line else "the forward"
    if "DataDependent" in type(failure).__name__ or "data-dependent" in str(failure):
        how = "without a decision by numbers in tensors, as with torch.where or a mask"
        return f"write {code} {how}, since torch.export knows no numbers{_KEEPS_CODE}"
    return f"change {code} so that torch.export can follow it{_KEEPS_CODE}"


def first_sentence(failure: BaseException) -> str:
    """The first line of an error of torch that is a sentence, after the name of its class."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Constraints violated", "The following call raised"))]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
