"""Plans with folded constants: made from a request, or resolved to the channels of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.channels.groups import Bools, Removal
from fxprune.errors import CaptureError, PlanError
from fxprune.fold.folding import Folding, fold
from fxprune.fold.zero_weights import masks_of_zero_rows, why_zeros_stay, zeros_needed
from fxprune.planning.channels import removal_of
from fxprune.planning.choose import choose, why_inexact_stay
from fxprune.planning.enough import keep_enough
from fxprune.planning.from_channels import plan_from
from fxprune.planning.plan import Plan, Removed
from fxprune.planning.shared_settings import keep_equal_widths
from fxprune.planning.without_effect import refuse_without_effect
from fxprune.rewrite.graph import rewrite

BIAS = ("prune", "fold")
BORDER = ("carrier", "map")


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan and what it means for one model.

    removal: the channels of the model that it removes. constants: the new numbers of what takes up their constants.
    """

    plan: Plan
    removal: Removal
    constants: FoldedConstants = field(default_factory=FoldedConstants)

    @property
    def zeroed(self) -> Removed:
        """The slots that the reference sets to zero."""
        return self.plan.removed if self.plan.zeroed is None else self.plan.zeroed


def folds(bias: str | None, masks: Any) -> bool:
    """True if a request folds constants: `bias="fold"`, or `bias` not given and a `masks` with a name, "zeros".

    Raises `PlanError` for another bias.
    """
    if bias not in (None, *BIAS):
        raise PlanError(f"there is no bias {bias!r}", why='bias is "prune" or "fold"', do='pass "prune", or "fold"')
    return bias == "fold" or (bias is None and isinstance(masks, str))


def make_plan(findings: Findings, *, bias: str | None = None, border: str = "carrier", **choices: Any) -> ResolvedPlan:
    """Choose channels and make the plan that removes them.

    Args:
        bias: "prune" removes channels with everything that belongs to them. "fold" sets only the weights of a channel
            to zero. The channel is a constant then, which is added to the layers that read it; a channel for which
            that is not exact stays. Default: "prune", but "fold" for masks="zeros".
        border: "carrier" or "map", see `fxprune.transform`.
        choices: the arguments of `fxprune.planning.choose.choose`.

    Raises `PlanError` for requests that cannot be meant, `CaptureError` where constants cannot be folded.
    """
    if border not in BORDER:
        raise PlanError(
            f"there is no border {border!r}", why='border is "carrier" or "map"', do='pass "carrier", or "map"'
        )
    masks = choices.get("masks")
    refuse_without_effect(choices)
    if border != "carrier" and not folds(bias, masks):
        at = f'border="{border}"'
        raise PlanError("border is without effect here", at=at, why="no constants are folded", do='add bias="fold"')
    if folds(bias, masks) and choices.get("keep") is not None:
        raise PlanError(
            "a budget and folding do not go together",
            why="a channel that carries constants stays, which the search for a budget does not count",
            do="give a ratio, or leave bias out",
        )
    if not folds(bias, masks):
        if masks == "zeros":
            choices["masks"] = {layer: live for layer, live in masks_of_zero_rows(findings).items() if live.any()}
            if not choices["masks"]:
                raise PlanError(
                    "no layer has an output channel whose weights are all zero",
                    at='masks="zeros"',
                    do="pass the masks themselves, or a ratio",
                )
        removed, reasons = choose(findings, **choices, small=lambda removal: rewrite(findings, removal).small)
        return ResolvedPlan(plan_from(findings, removed, reasons), Removal(findings.solution, removed))
    _check_can_fold(findings, border)
    also = ", without exact=True" if choices.get("exact") else ""
    by = f'bias="fold" takes exact groups alone; pass bias="prune"{also}'
    wanted, reasons = choose(findings, **{**choices, "exact": by})
    if wanted.any():  # else the reasons say it of all
        asked = {"ratio": choices.get("ratio"), "ignore": choices.get("ignore", ())}
        reasons += why_inexact_stay(findings, **asked, exact=bool(choices.get("exact")))
    zeros = isinstance(masks, str)
    found = fold(findings, wanted, {} if zeros else None, _keeper(findings), maps=border == "map")
    if zeros:
        found = replace(found, zeroed=zeros_needed(findings, found))
    why = why_zeros_stay(findings, found) if zeros else _why_channels_stay(findings, wanted, found)
    if zeros and not why and not found.removed.any():
        why = ("every channel that could go has an influence that depends on the input",)
    return _with_constants(findings, found, (*reasons, *why))


def resolve_plan(findings: Findings, plan: Plan) -> ResolvedPlan:
    """Find the channels of this model that a plan removes, and fold their constants, for a plan that was made before.

    The plan that is returned has the biases and maps of this model.

    Raises `PlanError` where the plan was made for another model, or where a channel is no constant in this one,
    `CaptureError` where constants cannot be folded at all.
    """
    removal = removal_of(findings, plan)
    if plan.zeroed is None:
        return ResolvedPlan(plan, removal)
    _check_can_fold(findings, "map" if plan.maps else "carrier")
    places = {*map(bias_name, plan.biases), *plan.maps}
    found = fold(findings, removal.removed, plan.zeroed, _keeper(findings), maps=bool(plan.maps), places=places)
    lost = np.flatnonzero(removal.removed & ~found.removed)
    if len(lost):
        raise PlanError(
            "the plan removes channels that carry no constant in this model",
            at=f'group "{findings.groups[findings.solution.group_of(lost[0])].name}"',
            why=found.reasons.get(int(lost[0]), ""),
            do="make the plan with this model's `analyze`",
        )
    made = _with_constants(findings, found, plan.reasons)
    return replace(made, plan=replace(plan, biases=made.plan.biases, maps=made.plan.maps))


def _with_constants(findings: Findings, found: Folding, reasons: tuple[str, ...]) -> ResolvedPlan:
    """The plan of a folding."""
    plan = plan_from(findings, found.removed, reasons)
    constants = found.constants
    plan = replace(plan, zeroed=found.zeroed, biases=tuple(constants.biases), maps=tuple(constants.maps))
    return ResolvedPlan(plan, Removal(findings.solution, found.removed), constants)


def _check_can_fold(findings: Findings, border: str) -> None:
    """Raise `CaptureError` or `PlanError` where constants cannot be folded at all."""
    if border == "map" and findings.captured.keeps_class:
        raise CaptureError("a map can only be added in a graph", do='use border="carrier", or prefer="graph"')
    if any(t.device.type == "meta" for t in findings.tensors.values()):
        raise PlanError(
            "constants cannot be folded without weights",
            why="the model is on the meta device, its parameters have no values",
            do='load the weights first, or use bias="prune"',
        )
    if not findings.captured.can_fold:
        why = "the forward decides by numbers" if findings.captured.real else "hooks put zeros back, not constants"
        raise CaptureError("constants cannot be folded in this way", why=why, do='use bias="prune"')


def _keeper(findings: Findings) -> Callable[[Bools], None]:
    """The function `keep` of `fold`: it keeps channels where a dimension would be empty, or widths would differ."""
    scores = np.zeros(findings.solution.channels)

    def keep(removed: Bools) -> None:
        keep_enough(findings, removed, scores)
        keep_equal_widths(findings, removed, scores)

    return keep


def _why_channels_stay(findings: Findings, wanted: Bools, found: Folding) -> tuple[str, ...]:
    """A line for each group and reason: how many of the channels that were asked for stay.

    wanted: flags of the channels that were asked for.
    """
    counts: dict[tuple[int, str], int] = {}
    for channel in np.flatnonzero(wanted & ~found.removed).tolist():
        key = (findings.solution.group_of(channel), found.reasons.get(channel, ""))
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        f'"{findings.groups[group].name}": {count} of the channels asked for stay: {why}'
        for (group, why), count in counts.items()
    )
