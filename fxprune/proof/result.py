"""The result of a proof."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.errors import VerificationError
from fxprune.proof.one_sided import OneSided
from fxprune.proof.precision import Precision


class NoReferenceError(Exception):
    """The original does not run, so that there is no reference. The text says why."""


@dataclass(frozen=True)
class Proof:
    """The result of a comparison.

    error: the largest relative error of the outputs, and of an operation inside if that is wrong.
    compared: how many numbers were compared that depend on what was removed.
    precision: the type of numbers of both runs.
    wrong: the error that says what differs; None if the small model is right.
    notes: sentences for the reader of the record.
    one_sided: the operations that did not run equally often in both models.
    without_number: how many NaN the outputs of the reference have.
    blind: a sentence about results that are NaN throughout on the first example inputs, so that nothing is compared;
        "" if there are none.
    instead: where `precision` is not float64, a sentence that says what it is, its tolerance, and why; else "".
    """

    error: float
    compared: int
    precision: Precision
    wrong: VerificationError | None = None
    notes: tuple[str, ...] = ()
    one_sided: tuple[OneSided, ...] = ()
    without_number: int = 0
    blind: str = ""
    instead: str = ""

    def with_round(self, other: Proof) -> Proof:
        """One proof for this one and another round of it."""
        return Proof(
            max(self.error, other.error),
            self.compared + other.compared,
            self.precision,
            self.wrong or other.wrong,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            tuple(dict.fromkeys((*self.one_sided, *other.one_sided))),
            self.without_number + other.without_number,
            self.blind or other.blind,
        )
