"""From what the user asked for to one score per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.analysis.findings import Findings, Group
from fxprune.criteria.filters import geometric_median_distances
from fxprune.criteria.magnitude import norm_scores
from fxprune.errors import FxpruneError, PlanError, nearest

Importance = str | Callable[[Group], Any]

NAMED = ("l1", "l2", "fpgm", "random")


def scores_of(
    findings: Findings, importance: Importance, groups: list[Group], seed: int | None
) -> npt.NDArray[np.float64]:
    """One score per channel of the analysis; only those of `groups` are asked for, the others are 0.

    Raises `PlanError` for an unknown name, and for a callable that returns a wrong length or NaN.
    """
    if callable(importance):
        return _called(findings, importance, groups)
    if importance == "random":
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise PlanError(f"seed must be an integer of at least 0, or None, not {seed!r}")
        return np.random.default_rng(seed).random(findings.solution.channels)
    if importance in ("l1", "l2", "fpgm"):
        if any(t.device.type == "meta" for t in findings.tensors.values()):
            raise PlanError(
                f'importance "{importance}" needs weights',
                why="the model is on the meta device, its parameters have no values",
                do='use importance="random", or load the weights first',
            )
        scores = _fpgm(findings, groups) if importance == "fpgm" else norm_scores(findings, int(importance[1]))
        if np.isnan(scores).any():
            bad = [n for n, t in findings.tensors.items() if t.is_floating_point() and bool(t.detach().isnan().any())]
            raise PlanError("the weights contain NaN", at=", ".join(bad[:4]), do="repair the weights first")
        return scores
    raise PlanError(
        f"unknown importance {importance!r}",
        why=nearest(str(importance), NAMED),
        do=f"use one of {', '.join(NAMED)}, or a callable that takes a group and returns one score per channel",
    )


def _fpgm(findings: Findings, groups: list[Group]) -> npt.NDArray[np.float64]:
    """How far a channel is from the others of its group, by the weights of the producer, summed over its slots."""
    scores = np.zeros(findings.solution.channels)
    for group in groups:
        made = group.producer
        filters = made.tensor.detach().index_select(made.dim, torch.from_numpy(made.slots).to(made.tensor.device))
        distances = geometric_median_distances(filters, made.dim).cpu().numpy()
        scores[group.channels] = np.bincount(made.index, weights=distances, minlength=group.size)
    return scores


def _called(findings: Findings, importance: Callable[[Group], Any], groups: list[Group]) -> npt.NDArray[np.float64]:
    totals = np.zeros(findings.solution.channels)
    for group in groups:
        try:
            made = torch.as_tensor(importance(group)).detach().to(device="cpu", dtype=torch.float64)
        except FxpruneError:
            raise  # a criterion of fxprune says what is wrong, and where, better than the text below
        except Exception as error:
            raise PlanError(
                "importance raises, or returns no numbers",
                at=f'group "{group.name}"',
                why=f"{type(error).__name__}: {error}",
                do="return one score per channel as a tensor, an array or a list",
            ) from error
        if made.shape != (group.size,):
            raise PlanError(
                "importance has the wrong shape",
                at=f'group "{group.name}"',
                why=f"it returned shape {tuple(made.shape)} for {group.size} channels",
                do="return one score per channel, in the order of the group's channels",
            )
        if bool(made.isnan().any()):
            raise PlanError(
                "importance is NaN",
                at=f'group "{group.name}"',
                why=f"{int(made.isnan().sum())} of {group.size} scores are NaN",
                do="return numbers; higher means keep",
            )
        totals[group.channels] = made.numpy()
    return totals
