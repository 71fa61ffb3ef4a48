"""Settings that count several dimensions: these are kept equally wide, since the setting is one number.

For example, `self.head_dim` of an attention layer may be the width of queries, keys and values. If a plan would remove
more channels from one of them than from another, some of these channels are kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector

PASSES = 16
"""The most passes over all settings: a pass for one may make the widths of another unequal. Mostly one is enough."""


def keep_equal_widths(findings: Findings, removed: Bools, scores: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Keep more channels until each setting counts dimensions of one size; returns a reason for each such setting.

    removed: flags of channels, cleared in place. scores: one per channel; those with the best are kept first.
    """
    reasons: dict[str, None] = {}
    for _ in range(PASSES):
        removal = Removal(findings.solution, removed)
        done = True
        for (path, name, _), sizings in findings.settings.items():
            sizes = [sizing for sizing in sizings if sizing.is_size]
            values = {sizing.setting(removal) for sizing in sizes}
            if len(values) < 2:
                continue
            done = False
            for sizing in sizes:
                missing = int((max(values) - sizing.setting(removal)) * sizing.times)
                if missing > 0:
                    reasons[f"{path}.{name} is one number for several widths: they keep as many channels"] = None
                    _keep(findings, removed, sizing.vector, missing, scores)
        if done:
            break
    return tuple(reasons)


def _keep(findings: Findings, removed: Bools, vector: Vector, missing: int, scores: npt.NDArray[np.float64]) -> None:
    """Keep removed channels, the best first, until `missing` more slots of a vector stay; at least one channel.

    removed: flags of channels, cleared in place.
    """
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
