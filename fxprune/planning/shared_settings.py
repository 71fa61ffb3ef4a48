"""Settings and sizes that tie widths: channels are kept until every number that forward computes fits again.

For example, `self.head_dim` of an attention layer may be the width of queries, keys and values, and
`v.view(b, -1, heads, k.shape[-1] // heads)` makes the widths of keys and values one number. If a plan would remove more
channels from one of them than from another, some of these channels are kept. With nothing removed everything fits, so
keeping more channels always ends well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.analysis.setting_values import Solved, wrong_parts
from fxprune.analysis.settings import name_of
from fxprune.analysis.uses import NumberUse, Uses
from fxprune.channels.groups import Bools, Removal, Solution
from fxprune.planning.common_number import keep_common_number
from fxprune.planning.common_width import keep_common_width
from fxprune.planning.keeping import Keeping, Part, Scores

EQUAL_COUNTS = "give them equal counts"
"""The next step where the user chose how many channels go of each width."""


def keep_equal_widths(findings: Findings, removed: Bools, scores: Scores, do: str = EQUAL_COUNTS) -> tuple[str, ...]:
    """Keep more channels until all numbers that forward computes from settings and sizes fit.

    Returns a reason for each group of such numbers that did not fit.

    removed: flags of channels, cleared in place. scores: one per channel; those with the best are kept first. do: the
        next step, which `prefer="graph"` follows where the model keeps its class; "" if there is no other one.
    """
    reasons: dict[str, None] = {}
    steps = [do] * bool(do) + ['pass prefer="graph"'] * findings.captured.keeps_class
    do = "; " * bool(steps) + ", or ".join(steps)
    kept = -1
    while kept != np.count_nonzero(removed):  # every round keeps channels, or is the last one
        kept = int(np.count_nonzero(removed))
        for parts, widths in joined_parts(findings):
            removal = Removal(findings.solution, removed)
            wrong = wrong_parts(parts, findings.uses.before, removal)
            reasons |= dict.fromkeys(why_unequal(solved, removal) + do for solved in wrong)
            if wrong:
                keeping = Keeping(findings, parts, removed, scores)
                if not keep_common_width(keeping, widths) and not keep_common_number(keeping):
                    keeping.run()
    return tuple(reasons)


_Joined = list[tuple[list[Part], set[int]]]

_JOINED: WeakKeyDictionary[Uses, tuple[Solution, _Joined]] = WeakKeyDictionary()
"""The parts of the uses that were asked for, for one solution."""


def joined_parts(findings: Findings) -> _Joined:
    """The parts of the uses, together where they compute with widths of the same group.

    For example, every block of a transformer may compute `width // heads` from the one width that all blocks share.
    Block by block, each would ask for another width, until nothing can go.

    Returns with them the numbers of these groups.
    """
    known = _JOINED.get(findings.uses)
    if known is None or known[0] is not findings.solution:
        known = findings.solution, [(parts, groups) for groups, parts in _joined(findings)]
        _JOINED[findings.uses] = known
    return known[1]


def _joined(findings: Findings) -> list[tuple[set[int], list[Part]]]:
    solution = findings.solution
    joined: dict[int, tuple[set[int], list[Part]]] = {}
    entry_of: dict[int, int] = {}
    for number, part in enumerate(findings.uses.parts):
        widths = list(dict.fromkeys(vector for use in part for vector in use.expression.vectors))
        groups = set(np.unique(solution.groups_of(solution.channels_among(widths))).tolist())
        others = [joined.pop(entry) for entry in sorted({entry_of[g] for g in groups if g in entry_of})]
        together = groups.union(*(g for g, _ in others))
        joined[number] = together, [*(p for _, parts in others for p in parts), part]
        entry_of |= dict.fromkeys(together, number)
    return list(joined.values())


def why_unequal(solved: Solved, removal: Removal) -> str:
    """A sentence about numbers that do not fit: the settings, the places and what each of them needs."""
    uses: dict[NumberUse, str] = {}
    for use, value in solved.wrong:
        for setting in sorted(use.expression.settings, key=str):
            if setting in solved.deciding:
                deciding = solved.deciding[setting]
                uses.setdefault(deciding, deciding.shown(Fraction(0), removal))
        uses.setdefault(use, use.shown(value, removal))
    names = sorted({name_of(s) for use in uses for s in use.expression.settings} or map(name_of, solved.values))
    uneven = [f"{name_of(s)} would be {v}" for s, v in solved.values.items() if v.denominator != 1]
    verb = "are" if names[1:] else "is"
    what = f"{' and '.join(names)} {verb} one number for several widths" if names else "sizes are one number"
    return f"{what}: they keep as many channels ({'; '.join(_folded(dict.fromkeys([*uses.values(), *uneven])))})"


def _folded(texts: Iterable[str]) -> list[str]:
    """Texts about the same place in several blocks as one.

    >>> _folded(["view in h.0.attn needs 7", "view in h.1.attn needs 7", "view in h.1.attn needs 8"])
    ['view in h.*.attn needs 7 (2 times)', 'view in h.1.attn needs 8']
    """
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(re.sub(r"(?<=[ .])\d+(?=\.)", "*", text), []).append(text)
    return [f"{key} ({len(found)} times)" if found[1:] else found[0] for key, found in alike.items()]
