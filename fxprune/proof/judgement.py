"""The judgement on two trails: which operations of the small model differ from those of the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fxprune.analysis.observed import Observation
from fxprune.capture.scopes import Key
from fxprune.errors import VerificationError
from fxprune.proof.failures import another_scale
from fxprune.proof.pair import Pair
from fxprune.proof.trail import OperationRuns, ProofStep, Trail, differs


@dataclass(frozen=True)
class Judgement:
    """The trails of the reference and of the small model, and what they say.

    tolerance: a relative error up to this is rounding.
    observations: what the analysis has seen in the mode of these runs.
    """

    pair: Pair
    tolerance: float
    observations: Mapping[str, Observation]
    theirs: Trail
    ours: Trail

    def another_scale(self) -> VerificationError | None:
        """The error if an operation is called with other fractions in the small model."""
        for key, step in self.ours.steps.items():
            other = self.theirs.steps.get(key)
            if other is None or len(step.numbers) != len(other.numbers):
                continue
            expected = self.pair.factors.numbers.get(key, other.numbers)
            if not np.allclose(step.numbers, expected, rtol=self.tolerance, atol=0, equal_nan=True):
                return another_scale(key, step, other)
        return None

    def suspects(self) -> Iterator[tuple[Key, float]]:
        """The operations whose results differ by more than the tolerance, and their errors, in the order of the run.

        None follows a decision that turned out otherwise, such as the order of equal numbers.
        """
        for key, step, other in self._comparable:
            if key in self.pair.norms_of_weights:
                continue
            if self.pair.factors.results and not step.depends:
                continue  # a number computed from a size, such as the scale that the factors make up for
            if not (apart := differs(step, other)) <= self.tolerance:
                yield key, apart
            if step.decision is not None and other.decision is not None and step.decision.error(other.decision) > 0:
                return

    def compared(self) -> int:
        """The number of numbers that were compared and depend on what was removed.

        Tensors of zeros do not count: any removal makes zeros of them.
        """
        count = 0
        for _, step, other in self._comparable:
            if step.depends and len(step.digests) == len(other.digests):
                pairs = zip(step.digests, other.digests, strict=True)
                count += sum(a.count for a, b in pairs if a is not None and b is not None and a.norm)
        return count

    @cached_property
    def largest(self) -> float:
        """The largest size of a result of the small model."""
        digests = (digest for step in self.ours.steps.values() for digest in step.digests)
        return max((digest.size for digest in digests if digest is not None), default=0.0)

    @cached_property
    def _comparable(self) -> list[tuple[Key, ProofStep, ProofStep]]:
        """The steps that both trails have, of operations that are the same ones.

        They are, if they ran equally often in both runs, and in the analysis as well.
        """
        seen: Counter[OperationRuns] = Counter(key[:3] for o in self.observations.values() for key in o.outputs)
        ours, theirs = self.ours, self.theirs
        same = {runs for runs, times in ours.calls.items() if theirs.calls.get(runs) == times == seen.get(runs)}
        both = ((key, step, theirs.steps.get(key)) for key, step in ours.steps.items() if key[:3] in same)
        return [(key, step, other) for key, step, other in both if other is not None]
