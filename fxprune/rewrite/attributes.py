"""Settings, attributes that count dimensions in code that no graph shows: each gets the value that its uses need."""

from __future__ import annotations

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.setting_values import Solved, is_touched, solve_part
from fxprune.analysis.settings import name_of, write_setting
from fxprune.channels.groups import Removal
from fxprune.errors import RewriteError
from fxprune.planning.shared_settings import why_unequal


def settle_settings(small: nn.Module, findings: Findings, removal: Removal) -> None:
    """Give every setting its new value, in the modules of the small model.

    Raises `RewriteError` where the places that use settings and sizes need different values now.
    """
    for part in findings.uses.parts:
        if is_touched(part, removal):
            solved = solve_part(part, findings.uses.before, removal)
            if solved.missed:
                raise _contradiction(solved, removal)
            for setting, value in solved.values.items():
                write_setting(small, setting, int(value))


def _contradiction(solved: Solved, removal: Removal) -> RewriteError:
    use = solved.wrong[0][0] if solved.wrong else next(iter(solved.deciding.values()))
    names = " and ".join(sorted(f'"{name_of(s)}"' for s in use.expression.settings))
    return RewriteError(
        f"{names or 'a size'} counts several things that are no longer equal",
        node=use.at.node,
        scope=use.at.module,
        vectors=tuple(v for wrong, _ in solved.wrong for v in wrong.vectors) or use.vectors,
        at=f"{use.at.module or 'the model'} ({use.at.source})",
        why=why_unequal(solved, removal),
        do="prune these groups by the same number, or let the model become a graph",
    )
