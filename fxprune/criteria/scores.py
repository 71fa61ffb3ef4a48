"""Turns the argument `importance` into one score per channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_arguments, checks_names
from fxprune.criteria.table import CRITERIA, MEASURED, Criterion, GroupsImportance, Importance
from fxprune.errors import FxpruneError, PlanError, counted, nearest
from fxprune.given_seeds import check_seed


@checks_names
def by_group(importance: Callable[[Group], Any]) -> Criterion:
    """A criterion from a callable that takes one group and returns one score per channel.

    Raises `PlanError`, when it is called, where the callable returns a wrong length, NaN, or no numbers.

    >>> import fxprune
    >>> CRITERIA["first"] = by_group(lambda group: range(group.size))
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> fxprune.analyze(net, torch.zeros(1, 2)).plan(ratio=0.5, importance="first").removed["0.bias"]
    {0: [0, 1]}
    >>> del CRITERIA["first"]
    """

    def criterion(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
        totals = np.zeros(findings.solution.channels)
        failed: dict[str, PlanError] = {}
        for group in groups:
            try:
                totals[group.channels] = _of_one_group(importance, group)
            except PlanError as error:
                if error.at != f'group "{group.name}"':
                    raise
                failed.setdefault(group.name, error)
        if failed:
            raise _of_all_groups(failed, known=any(group.name not in failed for group in groups))
        return totals

    return criterion


@checks_arguments("findings", "groups")
def scores_of(
    findings: Findings, importance: Importance, groups: Sequence[Group], seed: int | None
) -> npt.NDArray[np.float64]:
    """One score per channel of the analysis; only those of `groups` are asked for.

    Raises `PlanError` for an unknown name, and for a callable that returns a wrong length or NaN.
    """
    check_seed(seed)
    if isinstance(importance, GroupsImportance):
        return importance.of_groups(findings, groups, seed)
    if callable(importance):
        return by_group(importance)(findings, groups, seed)
    if not isinstance(importance, str) or importance not in CRITERIA:
        raise unknown_importance(importance)
    scores = CRITERIA[importance](findings, groups, seed)
    if np.isnan(scores).any():
        bad = [n for n, t in findings.tensors.items() if t.is_floating_point() and bool(t.detach().isnan().any())]
        raise PlanError("the weights contain NaN", at=", ".join(bad[:4]), do="repair the weights first")
    return scores


def unknown_importance(importance: Any) -> PlanError:
    """The error for an importance that is neither a known name nor callable."""
    by_hand = "a callable that takes a group and returns one score per channel"
    if isinstance(importance, str) and importance in MEASURED:
        return PlanError(
            f'importance "{importance}" needs data',
            why="it is measured on batches, and none were given",
            do="pass `data=batches`, such as a data loader",
        )
    return PlanError(
        f"unknown importance {importance!r}",
        why=nearest(str(importance), [*CRITERIA, *MEASURED])
        if isinstance(importance, str)
        else f"it is neither a name nor callable, but of type {type(importance).__name__}",
        do=f"use one of {', '.join(CRITERIA)}; one of {', '.join(MEASURED)} with `data=`; or {by_hand}",
    )


def _of_all_groups(failed: Mapping[str, PlanError], known: bool) -> PlanError:
    """One error for all groups that an importance cannot rank: that of the first, with a list of all.

    failed: the errors by the names of the groups. known: True if it can rank others.
    """
    (name, first), *others = failed.items()
    if not others:
        return first
    listed = ", ".join(f'"{name}"' for name in failed)
    do = f"{first.do}; all of them are ignore=[{listed}]" if known else first.do
    return PlanError(first.what, at=f"groups {listed}", why=f'of "{name}": {first.why}', do=do)


def _of_one_group(importance: Callable[[Group], Any], group: Group) -> npt.NDArray[np.float64]:
    """The scores of a group from a callable. Raises `PlanError` for anything but one number per channel."""
    at = f'group "{group.name}"'
    try:
        scores = torch.as_tensor(importance(group)).detach().to(device="cpu", dtype=torch.float64)
    except FxpruneError:
        raise  # the errors of fxprune's own criteria say more than the text below
    except Exception as error:
        raise PlanError(
            "importance raises, or returns no numbers",
            at=at,
            why=f"{type(error).__name__}: {error}",
            do="return one score per channel as a tensor, an array or a list",
        ) from error
    if scores.shape != (group.size,):
        raise PlanError(
            "importance has the wrong shape",
            at=at,
            why=f"it returned shape {tuple(scores.shape)} for {counted(group.size, 'channel')}",
            do="return one score per channel, in the order of the group's channels",
        )
    if bool(scores.isnan().any()):
        raise PlanError(
            "importance is NaN",
            at=at,
            why=f"{int(scores.isnan().sum())} of {group.size} scores are NaN",
            do="return numbers; higher means keep",
        )
    return np.asarray(scores.numpy())
