"""The errors of a failed proof: the results differ, the small model raises, or it computes with another scale."""

from __future__ import annotations

from fxprune.capture.error_place import line_of
from fxprune.capture.scopes import Key
from fxprune.errors import VerificationError, text_of
from fxprune.proof.trail import ProofStep

REPORT = "report this; until then `ignore` that group, its channels stay"


def differs_inside(
    key: Key | None, step: ProofStep | None, apart: float, error: float, tolerance: float
) -> VerificationError:
    """The error for results that differ.

    key, step: the first operation whose result differs, None if only the outputs do. apart: its relative error.
    error: that of the outputs.
    """
    why = f"the relative error is {apart:.2e}, at most {tolerance:.0e} is rounding"
    if key is not None:
        why = f"the first result that differs is that of {key[2]}; its relative error is {apart:.2e}, at most "
        why += f"{tolerance:.0e} is rounding; that of the outputs is {error:.2e}"
    at = place(key, step.source if step is not None else "") if key is not None else ""
    return VerificationError("the small model differs from its reference", at=at, why=why, do=REPORT)


def graph_differs(error: float) -> VerificationError:
    """The error for a graph that is not the model it was made from."""
    return VerificationError(
        "the graph of the model gives other results than the model",
        why=f"the relative error is {error:.2e}, called as its user calls it",
        do='take a path that keeps the class: prefer="class"',
    )


def another_scale(key: Key, step: ProofStep, reference: ProofStep) -> VerificationError:
    """The error for an operation that is called with other fractions in the small model."""
    return VerificationError(
        "the small model computes with another scale",
        at=place(key, step.source),
        why=f"{key[2]} is called with {_listed(step.numbers)}; in the original with {_listed(reference.numbers)}",
        do="write the scale as a number, or `ignore` the layers whose width it is computed from",
    )


def raised(what: str, error: Exception, where: str) -> VerificationError:
    """The error for a model that raises. what: which one. where: under which condition."""
    return VerificationError(
        f"{what} raises {where}",
        at=line_of(error),
        why=text_of(error),
        do=REPORT,
    )


def place(key: Key, source: str) -> str:
    """The module of an operation, and the user's line that called it."""
    path = key[0].partition("|")[0]
    named = "the model" if not path else path if path.startswith("%") else f'"{path}"'
    return f"{named} ({source})" if source else named


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)
