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
"""Levelling one setting can unbalance another; it only ever keeps more, and mostly ends after one pass."""


def level(findings: Findings, removed: Bools, scores: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Keep more channels, in place, the best first, until every setting has one value; says where."""
    levelled: dict[str, None] = {}
    for _ in range(PASSES):
        removal = Removal(findings.solution, removed)
        done = True
        for (path, name, _), sizings in findings.settings.items():
            plain = [s for s in sizings if s.plain]
            values = {s.setting(removal) for s in plain}
            if len(values) < 2:
                continue
            done = False
            for sizing in plain:
                missing = int((max(values) - sizing.setting(removal)) * sizing.times)
                if missing > 0:
                    levelled[f"{path}.{name} is one number for several widths: they keep as many channels"] = None
                    _restore(findings, removed, sizing.vector, missing, scores)
        if done:
            break
    return tuple(levelled)


def _restore(findings: Findings, removed: Bools, vector: Vector, missing: int, scores: npt.NDArray[np.float64]) -> None:
    """Keep removed channels, the best first, that bring back `missing` slots of a vector, or at least one channel."""
    columns = findings.solution.channels_of(vector)
    gone = np.unique(np.concatenate([c[(c >= 0) & removed[c]] for c in columns])) if columns else np.zeros(0, int)
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
