"""One width for several modules that compute their numbers from it, such as the blocks of a transformer.

A block that computes `width // heads` and `reshape(n, t, width)` fits only widths that are heads times head width. The
least width that fits all blocks is found by trying one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fxprune.channels.groups import Ints
from fxprune.planning.keeping import Keeping


def keep_common_width(keeping: Keeping, widths: set[int]) -> bool:
    """Keep as few channels of the common width as possible, and in each block those that then fit.

    Returns False, and keeps nothing, if no width fits, or if there is not one common width.

    widths: the groups of widths that forward computes with.
    """
    kinds = list(keeping.kinds())
    group_of = keeping.findings.solution.group_of
    common = [kind for kind in kinds if group_of(kind[0]) in widths]
    own = [kind for kind in kinds if group_of(kind[0]) not in widths]
    if len(common) != 1:
        return False
    blocks = blocks_of(keeping, own)
    before = keeping.removed.copy()
    for count in range(len(common[0]) + 1):
        keeping.removed[:] = before
        keeping.removed[common[0][:count]] = False
        if all(fit(keeping, parts, own_kinds) for parts, own_kinds in blocks):
            return True
    keeping.removed[:] = before
    return False


def blocks_of(keeping: Keeping, own: Sequence[Ints]) -> list[tuple[set[int], list[Ints]]]:
    """The numbers of the parts, together where they count the same channels, with these channels by kind."""
    blocks: list[tuple[set[int], list[Ints]]] = [({part}, []) for part in range(len(keeping.parts))]
    for kind in own:
        parts = set(np.flatnonzero(keeping.reached(kind)).tolist())
        touched = [block for block in blocks if block[0] & parts]
        blocks = [block for block in blocks if not block[0] & parts]
        kinds = [other for _, others in touched for other in others]
        blocks.append((parts.union(*(block[0] for block in touched)), [*kinds, kind]))
    return blocks


def fit(keeping: Keeping, parts: set[int], kinds: Sequence[Ints]) -> bool:
    """Keep channels of a block until its parts hold. Returns False if they do not; some may be kept then.

    Every number of channels of the smallest kind (heads) is tried, with as many of the others as then help.
    """
    first, *others = sorted(kinds, key=len) or [np.zeros(0, dtype=np.int64)]
    for count in range(len(first) + 1):
        keeping.removed[np.concatenate([first, *others])] = True
        keeping.removed[first[:count]] = False
        for kind in others:
            _keep_while_it_helps(keeping, parts, kind)
        if not _distance(keeping, parts):
            return True
    return False


def _keep_while_it_helps(keeping: Keeping, parts: set[int], kind: Ints) -> None:
    """Keep channels of a kind, the best ones first, as long as the parts come closer to holding."""
    missed = _distance(keeping, parts)
    for channel in kind:
        if not missed:
            return
        keeping.removed[channel] = False
        after = _distance(keeping, parts)
        if after >= missed:
            keeping.removed[channel] = True
            return
        missed = after


def _distance(keeping: Keeping, parts: set[int]) -> Fraction:
    """The distance of some parts from holding."""
    return sum((keeping.distance(keeping.parts[part]) for part in parts), Fraction(0))
