"""One setting, several dimensions: where a module has one number for two widths, they shrink to the same width.

`self.head_dim` of an attention layer is the width of queries, keys and values. In its class they can only go together;
channels that would be removed from one of them alone are kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector

PASSES = 16
"""Equal widths of one setting can make those of another unequal; channels are only kept, and one pass mostly does."""


def keep_equal_widths(findings: Findings, removed: Bools, scores: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Keep more channels, in place, the best first, until every setting has one value; returns where that was so."""
    reasons: dict[str, None] = {}
    for _ in range(PASSES):
        removal = Removal(findings.solution, removed)
        done = True
        for (path, name, _), sizings in findings.settings.items():
            plain = [sizing for sizing in sizings if sizing.plain]
            values = {sizing.setting(removal) for sizing in plain}
            if len(values) < 2:
                continue
            done = False
            for sizing in plain:
                missing = int((max(values) - sizing.setting(removal)) * sizing.times)
                if missing > 0:
                    reasons[f"{path}.{name} is one number for several widths: they keep as many channels"] = None
                    _keep(findings, removed, sizing.vector, missing, scores)
        if done:
            break
    return tuple(reasons)


def _keep(findings: Findings, removed: Bools, vector: Vector, missing: int, scores: npt.NDArray[np.float64]) -> None:
    """Keep removed channels, the best first, that bring back `missing` slots of a vector, or at least one channel."""
    gone = np.flatnonzero(removed & findings.solution.channels_in([vector]))
    for channel in gone[np.argsort(-scores[gone], kind="stable")]:
        before = Removal(findings.solution, removed).count(vector)
        removed[channel] = False
        back = Removal(findings.solution, removed).count(vector) - before
        if back > missing and channel != gone[-1]:
            removed[channel] = True
            continue
        missing -= back
        if missing <= 0:
            return
