"""Scores that were measured once: of every group, kept in a file, and used again without the data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_arguments
from fxprune.channels.groups import Ints
from fxprune.criteria.scored_model import ScoredParameter, parameters_of
from fxprune.criteria.scores import scores_of
from fxprune.criteria.table import Importance, comparable, in_loss
from fxprune.errors import FileError, PlanError, nearest
from fxprune.files import Field, PathLike, parse_json, read_bytes, write_text

SCHEMA = "fxprune.scores/2"
OLD_SCHEMA = "fxprune.scores/1"
"""Files of this one do not say what model they are of."""

LIMIT = 1 << 30
"""The most bytes that are read of a file."""

LARGEST = float(np.finfo(np.float64).max)
"""The number that stands for infinity in a file."""


@dataclass(frozen=True)
class GroupScores:
    """The scores of one group.

    size: the size of the dimension that the group is named after. slots: for each channel its first slot there.
    scores: one per channel.
    """

    size: int
    slots: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """The scores of the channels of a model, an importance that reads neither weights nor data.

    groups: key of a group -> its scores. importance: a text about what made them. comparable: True if the scores of
    different groups compare. missing: key of a group without scores -> why. parameters: those of the model that was
    scored; none if that is not known. in_loss: True if the scores are changes of the loss.
    """

    groups: Mapping[str, GroupScores] = field(repr=False)
    importance: str = ""
    comparable: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, ScoredParameter] = field(default_factory=dict, repr=False)
    in_loss: bool = False

    def __call__(self, group: Group) -> Tensor:
        """The scores of the group's channels, float64 [group.size].

        Raises `PlanError` for a group without scores, and for channels that it did not have.
        """
        known = self.groups.get(group.key)
        if known is None:
            why = (
                self.missing.get(group.key)
                or f"the scores were made of another model: {nearest(group.key, self.groups)}"
            )
            do = f"leave it out with ignore={group.name!r}, or measure the scores of this model"
            raise PlanError("there are no scores of a group", at=f'group "{group.key}"', why=why, do=do)
        by_slot = dict(zip(known.slots, known.scores, strict=True))
        found = [by_slot.get(slot) for slot in _first_slots(group)]
        if known.size != _size(group) or None in found:
            raise PlanError(
                "the scores are of other channels",
                at=f'group "{group.key}"',
                why=f"it has {group.size} channels in {_size(group)} slots; the scores are of "
                f"{len(known.slots)} channels in {known.size} slots",
                do="measure the scores of this model",
            )
        return torch.tensor(found, dtype=torch.float64)


def scores_of_groups(findings: Findings, importance: Importance, seed: int | None, name: str) -> ChannelScores:
    """The scores of all groups that an importance can rank; of the others `missing` says why not.

    name: of the importance, for the file.
    """
    groups: dict[str, GroupScores] = {}
    missing: dict[str, str] = {}
    try:
        together = scores_of(findings, importance, findings.groups, seed)
    except PlanError:
        together = None
    for group in findings.groups:
        try:
            scores = scores_of(findings, importance, [group], seed) if together is None else together
        except PlanError as error:
            missing[group.key] = "; ".join(part for part in (error.what, error.first_why) if part)
            continue
        groups[group.key] = GroupScores(
            _size(group), tuple(_first_slots(group)), tuple(scores[group.channels].tolist())
        )
    if not groups:
        scores_of(findings, importance, findings.groups, seed)  # raises the error
    parameters = parameters_of(findings.model)
    return ChannelScores(groups, name, comparable(importance), missing, parameters, in_loss(importance))


def _size(group: Group) -> int:
    """The size of the dimension that the group is named after."""
    return int(group.producer.tensor.shape[group.producer.dim])


def _first_slots(group: Group) -> list[int]:
    """For each channel its first slot in the dimension that the group is named after."""
    made = group.producer
    _, first = np.unique(made.index, return_index=True)
    slots: Ints = made.slots[first]
    return [int(slot) for slot in slots]


@checks_arguments("scores")
def save_scores(scores: ChannelScores, path: PathLike) -> None:
    """Write scores to a file of JSON, whole or not at all. Scores of `analysis.scores(...)` can be saved.

    Raises `FileError` for a path that cannot be written.

    >>> import fxprune, tempfile
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> analysis = fxprune.analyze(net, torch.zeros(1, 2))
    >>> scores = analysis.scores("l1")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_scores(scores, f"{folder}/scores.json")
    ...     again = load_scores(f"{folder}/scores.json")
    >>> analysis.plan(ratio=0.5, scores=again).removed == analysis.plan(ratio=0.5, importance="l1").removed
    True
    """
    groups = {
        key: {
            "size": one.size,
            "slots": list(one.slots),
            "scores": np.nan_to_num(one.scores, posinf=LARGEST, neginf=-LARGEST).tolist(),
        }
        for key, one in scores.groups.items()
    }
    data = {"schema": SCHEMA, "importance": scores.importance, "comparable": scores.comparable, "groups": groups}
    data |= {"in_loss": True} if scores.in_loss else {}
    parameters = {name: {"shape": list(one.shape), "sum": one.sum} for name, one in scores.parameters.items()}
    write_text(path, json.dumps({**data, "missing": dict(scores.missing), "parameters": parameters}, allow_nan=False))


@checks_arguments()
def load_scores(path: PathLike) -> ChannelScores:
    """The scores in a file. Raises `FileError` for anything that `save_scores` would not have written."""
    source = f'the file of scores "{os.fspath(path)}"'
    found = Field(
        parse_json(read_bytes(path, LIMIT), source), source, do="write it with `fxprune.criteria.save_scores`"
    )
    keys = ("schema", "importance", "comparable", "groups", "missing")
    old = isinstance(found.value, dict) and found.value.get("schema") == OLD_SCHEMA
    found.object(keys if old else (*keys, "parameters"), optional=("in_loss",))
    found["schema"].text((SCHEMA, OLD_SCHEMA))
    flags = {name: found[name] for name in ("comparable", "in_loss") if name in found.value}
    for flag in flags.values():
        if not isinstance(flag.value, bool):
            raise flag.wrong("it must be true or false")
    groups = {key: _group_of(one) for key, one in found["groups"].mapping().items()}
    missing = {key: why.text() for key, why in found["missing"].mapping().items()}
    scored = {} if old else {name: _parameter_of(one) for name, one in found["parameters"].mapping().items()}
    given = {name: flag.value for name, flag in flags.items()}
    return ChannelScores(groups, found["importance"].text(), missing=missing, parameters=scored, **given)


def _parameter_of(found: Field) -> ScoredParameter:
    found.object(("shape", "sum"))
    shape = tuple(size.integer(0, 2**40) for size in found["shape"].items())
    return ScoredParameter(shape, None if found["sum"].value is None else float(found["sum"].number()))


def _group_of(found: Field) -> GroupScores:
    found.object(("size", "slots", "scores"))
    slots = tuple(slot.integer(0, 2**40) for slot in found["slots"].items())
    scores = tuple(float(score.number()) for score in found["scores"].items())
    if len(slots) != len(scores):
        raise found.wrong("it must have as many slots as scores")
    return GroupScores(found["size"].integer(1, 2**40), slots, scores)


def given_scores(scores: Any) -> Importance:
    """The scores of the argument `scores=`: those in a file, or those that are given."""
    if isinstance(scores, (str, os.PathLike)):
        try:
            return load_scores(scores)
        except OSError as error:
            raise FileError(
                "the file of scores cannot be read",
                at=f'"{os.fspath(scores)}"',
                why=error.what if isinstance(error, FileError) else error.strerror or str(error),
                do="write it with `fxprune.criteria.save_scores`",
            ) from error
    if isinstance(scores, ChannelScores):
        return scores
    raise PlanError(
        f"scores cannot be a {type(scores).__name__}",
        why="they are the name of a file, or what `analysis.scores` or `fxprune.criteria.load_scores` returns",
        do="pass a dict {group: scores} as `importance`",
    )
