"""The settings of a search for widths."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from fxprune.arguments import fits
from fxprune.errors import InputError, PlanError, nearest
from fxprune.files import PathLike
from fxprune.planning.scopes import SEARCH

STEPS = 60
"""The number of small models that are measured, unless another one is asked for."""


@dataclass(frozen=True)
class SearchSettings:
    """The settings of `scope="search"`.

    steps: the number of small models that are measured. file: a JSON file that is written after every step, and from
    which a run that was killed goes on. progress: False for no bar. score: a function from a model to a number of
    which more is better; without it the loss counts, and without a loss the error of the outputs.

    Raises `InputError` for values that make no sense.
    """

    steps: int = STEPS
    file: PathLike | None = None
    progress: bool = True
    score: Callable[[nn.Module], Any] | None = None

    def __post_init__(self) -> None:
        if not fits(self.steps, int) or self.steps < 1:
            raise InputError(
                "steps must be an integer of at least 1",
                at=f"search={{'steps': {self.steps!r}}}",
                do='pass {"steps": 100}',
            )
        if self.file is not None and not isinstance(self.file, str | os.PathLike):
            raise InputError(
                "file must be a path", at=f"search={{'file': {self.file!r}}}", do='pass {"file": "search.json"}'
            )
        if self.score is not None and not callable(self.score):
            raise InputError(
                "score must be a function of a model",
                at=f"search={{'score': {self.score!r}}}",
                do='pass {"score": function}, which returns a number for a model',
            )
        if not fits(self.progress, bool):
            raise InputError(
                "progress must be True or False",
                at=f"search={{'progress': {self.progress!r}}}",
                do='pass {"progress": False}, or leave it out',
            )


def search_settings(choices: Mapping[str, Any], given: Any, repair: Any) -> SearchSettings | None:
    """The settings of a search, None for a request with another scope.

    choices: of the request. given: the settings as a dict. repair: the data of the repair.

    Raises `InputError` for a setting that does not exist, `PlanError` for a search without a budget or data, and for
    settings that are without effect.
    """
    if choices.get("scope") != SEARCH:
        if given is not None:
            why = f"scope is {choices.get('scope', 'local')!r}, which measures nothing"
            raise PlanError("search is without effect here", why=why, do='pass scope="search", or leave it out')
        return None
    if choices.get("keep") is None:
        raise PlanError('scope="search" needs a budget', why="keep is not given", do='pass keep={"macs": 0.5}')
    if repair is None or repair is False:
        why, do = "it measures small models after their repair", "pass repair=batches, some hundred samples"
        raise PlanError('scope="search" needs data', why=why, do=do)
    if given is None:
        return SearchSettings()
    if not isinstance(given, Mapping):
        raise InputError("search must be a dict", why=f"it is a {type(given).__name__}", do='pass {"steps": 100}')
    known = [field.name for field in fields(SearchSettings)]
    for name in given:
        if name not in known:
            raise InputError(
                f"a search has no setting {name!r}",
                why=nearest(str(name), known),
                do="leave it out, or correct its name",
            )
    return SearchSettings(**given)
