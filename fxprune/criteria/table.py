"""The tables of criteria: each criterion puts itself there, in the file that it stands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_names
from fxprune.errors import PlanError

Importance = str | Callable[[Group], Any] | Mapping[Any, Any]
"""A name in `CRITERIA`; a callable that takes a group and returns one score per channel; or {pattern: scores}.

A callable returns [group.size] numbers as a tensor, an array or a list, in the order of the group's channels.
"""


class Criterion(Protocol):
    """A criterion in `CRITERIA`. It gives scores; it chooses no channels."""

    def __call__(self, findings: Findings, groups: Sequence[Group], seed: int | None) -> npt.NDArray[np.float64]:
        """One score per channel of the analysis, float64 [findings.solution.channels], higher = keep.

        Args:
            findings: what the analysis found: the tensors of the model by name, and the channels.
            groups: those whose channels are ranked; the scores of all others are not looked at.
            seed: of anything random.
        """


class GroupsImportance:
    """An importance that gives the scores of several groups at once, faster than group by group."""

    def of_groups(self, findings: Findings, groups: Sequence[Group], seed: int | None) -> npt.NDArray[np.float64]:
        """One score per channel of the analysis, as a `Criterion` gives it."""
        raise NotImplementedError


FromData = Callable[..., Callable[[Group], Any]]
"""A function that returns an importance, from a model and a loader or from statistics."""

CRITERIA: dict[str, Criterion] = {}
"""The criteria by the name that is passed as `importance`. A name that is added here can be used at once."""

MEASURED: dict[str, FromData] = {}
"""The criteria that need data, by name."""

CriterionT = TypeVar("CriterionT", bound=Criterion)
FromDataT = TypeVar("FromDataT", bound=FromData)


COMPARABLE: set[str] = set()
"""The criteria whose scores compare between groups. Scores of others are divided by the mean of their group first."""


@checks_names
def comparable(importance: Importance) -> bool:
    """True if the scores of an importance compare between groups: one that says so by its attribute `comparable`."""
    return importance in COMPARABLE if isinstance(importance, str) else bool(getattr(importance, "comparable", False))


@checks_names
def in_loss(importance: Importance) -> bool:
    """True if the scores are changes of the loss: an importance says so by its attribute `in_loss`.

    The scores of channels of different groups are divided by what a channel costs then.
    """
    return bool(getattr(importance, "in_loss", False))


@checks_names
def criterion(name: str, *, comparable: bool = False) -> Callable[[CriterionT], CriterionT]:
    """Put a function into `CRITERIA` under this name. Raises `PlanError` for a name that another function has.

    comparable: True if its scores compare between groups.
    """

    def register(function: CriterionT) -> CriterionT:
        _put(CRITERIA, name, function)
        if comparable:
            COMPARABLE.add(name)
        return function

    return register


@checks_names
def measured(name: str) -> Callable[[FromDataT], FromDataT]:
    """Put a function that needs data into `MEASURED` under this name. Raises `PlanError` as `criterion` does."""

    def register(function: FromDataT) -> FromDataT:
        _put(MEASURED, name, function)
        return function

    return register


def _put(table: dict[str, Any], name: str, function: Any) -> None:
    if name in table:
        raise PlanError(
            f"there is a criterion {name!r} already",
            at=f"{table[name].__module__}.{table[name].__name__}",
            do="choose another name",
        )
    table[name] = function
