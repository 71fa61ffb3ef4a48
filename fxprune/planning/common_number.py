"""One number for several widths, such as the `width` of a block that splits its channels into equal parts.

Where such a width is a grid (the groups of a convolution times the channels of each), not every number can be reached.
The least one that all of them can is found by trying one after the other.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fxprune.analysis.settings import Setting
from fxprune.planning.common_width import blocks_of, fit
from fxprune.planning.keeping import Keeping


def keep_common_number(keeping: Keeping) -> bool:
    """Keep as few channels as possible so that all widths are one number again.

    Returns False, and keeps nothing, if the uses are not about a single setting, or if no smaller number fits.
    """
    settings = {s for part in keeping.parts for use in part for s in use.expression.settings}
    if len(settings) != 1 or any(use.expression.vectors for part in keeping.parts for use in part):
        return False
    (setting,) = settings
    apart = Keeping(
        keeping.findings, [(use,) for part in keeping.parts for use in part], keeping.removed, keeping.scores
    )
    before, kinds = keeping.removed.copy(), list(apart.kinds())
    blocks = blocks_of(apart, kinds)
    for value in range(_least(apart, setting), keeping.findings.uses.before[setting]):
        keeping.removed[:] = before
        apart.given = {setting: Fraction(value)}
        if all(fit(apart, parts, own) for parts, own in blocks) and not apart.left():
            return True
    keeping.removed[:] = before
    return False


def _least(keeping: Keeping, setting: Setting) -> int:
    """The least number that a setting may have, since no width shrinks further."""
    values = [keeping.solved(part).values.get(setting, Fraction(1)) for part in keeping.parts]
    return max(1, *(math.ceil(value) for value in values))
