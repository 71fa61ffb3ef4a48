"""Options that have no effect beside others: they are refused, as one that is ignored would be taken for heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.arguments import shown
from fxprune.errors import PlanError
from fxprune.planning.figures import TIMED

RANKING = {"importance": "l2", "round_to": 1, "uniform": (), "min_channels": 1, "max_ratio": None, "scope": "local"}
"""The options that rank channels or limit their number, with their defaults."""

FILTERS = {"ignore": (), "exact": False}
"""The options that hold channels, with their defaults."""


def refuse_without_effect(choices: Mapping[str, Any], *, plan: bool = False) -> None:
    """Raises `PlanError` for an option that is not at its default, though the other ones leave it without effect.

    choices: options of `choose`. plan: True if a plan was given.
    """
    if plan:
        left = {name: value for name, value in choices.items() if name != "uniform" or value != "config"}
        defaults = {**RANKING, **FILTERS, "border": "carrier", "latency_table": None}
        _refuse(left, defaults, "a plan says already which channels go")
    elif choices.get("masks") is not None:
        _refuse(choices, RANKING, "masks say already which channels go")
        _refuse_table(choices)
    else:
        if choices.get("keep") is None and choices.get("round_to") != "auto":
            _refuse(choices, {"scope": "local"}, "there is no budget to spread over the groups")
        _refuse_table(choices)


def _refuse_table(choices: Mapping[str, Any]) -> None:
    """Raises `PlanError` for a table of latencies where no latency is measured. False keeps none."""
    table, keep = choices.get("latency_table"), choices.get("keep")
    measured = choices.get("round_to") == "auto" or (isinstance(keep, Mapping) and any(key in TIMED for key in keep))
    if table is not None and table is not False and not measured:
        raise PlanError(
            "latency_table is without effect here",
            at=f"latency_table={shown(table)}",
            why="no latency is measured",
            do='pass keep={"latency": ...} or round_to="auto", or leave it out',
        )


def _refuse(choices: Mapping[str, Any], defaults: Mapping[str, Any], why: str) -> None:
    for name, default in defaults.items():
        value = choices.get(name, default)
        empty = isinstance(value, list | tuple | set | frozenset) and not value and default == ()
        if not empty and value != default:
            raise PlanError(f"{name} is without effect here", at=f"{name}={shown(value)}", why=why, do="leave it out")
