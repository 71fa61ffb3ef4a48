"""Errors of `torch.export` in short: the sentence that says why, and what to do. The hints for debugging torch go."""

from __future__ import annotations

from torch.nn.utils.rnn import PackedSequence

from fxprune.capture.code import is_torch
from fxprune.capture.error_place import in_a_distribution, locals_of
from fxprune.errors import text_of


def next_step(failure: BaseException, line: str) -> str:
    """The change by which torch exports a model. line: of the user's code, "" if it is not known."""
    if any(isinstance(value, PackedSequence) for value in locals_of(failure)):
        return "give the recurrent layer padded tensors, since torch.export takes no PackedSequence"
    if in_a_distribution(failure):
        how = "leave out `validate_args=True`, since a distribution that checks its arguments reads numbers, which"
        return f"{how} torch.export does not know"
    code = "this line" if line else "the forward"
    if "DataDependent" in type(failure).__name__ or "data-dependent" in str(failure):
        how = "without a decision by numbers in tensors, as with torch.where or a mask"
        return f"write {code} {how}, since torch.export knows no numbers"
    return f"change {code} so that torch.export can follow it"


def why_refused(failure: BaseException) -> str:
    """The reason for a refusal: a sentence of torch's own error, and all of an error that the user's code raises."""
    return first_sentence(failure) if is_torch(type(failure).__module__) else text_of(failure)


def first_sentence(failure: BaseException) -> str:
    """The first line of an error that is a sentence, after the name of its class."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Constraints violated", "The following call raised"))]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
