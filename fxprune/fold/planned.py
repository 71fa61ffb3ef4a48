"""From a request to a plan, constants included; and from a plan back to the channels of this model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import Constants, bias_name
from fxprune.capture.tensors import PARAMETER
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.errors import CaptureError, PlanError
from fxprune.fold.constants import Folding, fold, opened
from fxprune.planning.channels import plan_from, removal_of
from fxprune.planning.choose import choose, keep_enough
from fxprune.planning.plan import Plan, Removed
from fxprune.planning.shared_settings import keep_equal_widths

BIAS = ("prune", "fold")
BORDER = ("carrier", "map")


@dataclass(frozen=True)
class Planned:
    """A plan, the channels of this model that it removes, and the parameters that take constants up."""

    plan: Plan
    removal: Removal
    constants: Constants = field(default_factory=Constants)

    @property
    def zeroed(self) -> Removed:
        """The slots that the reference sets to zero."""
        return self.plan.removed if self.plan.zeroed is None else self.plan.zeroed


def folds(bias: str | None, masks: Any) -> bool:
    """True if a request folds constants: `bias="fold"`, or no bias and masks="zeros".

    Raises `PlanError` for another bias.
    """
    if bias not in (None, *BIAS):
        raise PlanError(f"there is no bias {bias!r}", why='bias is "prune" or "fold"')
    return bias == "fold" or (bias is None and isinstance(masks, str))


def make_plan(findings: Findings, *, bias: str | None = None, border: str = "carrier", **choices: Any) -> Planned:
    """Choose channels, see `fxprune.planning.choose.choose`.

    Args:
        bias: "prune" removes channels with everything that belongs to them. "fold" removes the weights, and adds
            the constant that the channel is without them to the layers that read it; channels for which that is not
            possible exactly stay. Default: "prune", but "fold" for masks="zeros".
        border: "carrier" or "map", see `fxprune.transform`.
    """
    if border not in BORDER:
        raise PlanError(f"there is no border {border!r}", why='border is "carrier" or "map"')
    masks = choices.get("masks")
    if not folds(bias, masks):
        if masks == "zeros":
            choices["masks"] = {layer: live for layer, live in zero_rows(findings).items() if live.any()}
            if not choices["masks"]:
                raise PlanError("no layer has an output channel whose weights are all zero", at='masks="zeros"')
        removed, reasons = choose(findings, **choices)
        return Planned(plan_from(findings, removed, reasons), Removal(findings.solution, removed))
    _refuse(findings, border)
    wanted, reasons = choose(findings, **{**choices, "exact": True})
    zeros = isinstance(masks, str)
    found = fold(findings, wanted, {} if zeros else None, _keeping(findings), maps=border == "map")
    if zeros:
        found = replace(found, zeroed=_zero_already(findings, found))
    why = _zeros_that_stay(findings, found) if zeros else _channels_that_stay(findings, wanted, found)
    if zeros and not why and not found.removed.any():
        why = ("every channel that could go has an influence that depends on the input",)
    return _planned(findings, found, (*reasons, *why))


def carry_out(findings: Findings, plan: Plan) -> Planned:
    """The channels and constants of this model that a plan made before removes and folds.

    Raises `PlanError` where it was made for another one, or where a constant cannot be folded here.
    """
    removal = removal_of(findings, plan)
    if plan.zeroed is None:
        return Planned(plan, removal)
    _refuse(findings, "map" if plan.maps else "carrier")
    places = {*map(bias_name, plan.biases), *plan.maps}
    found = fold(findings, removal.removed, plan.zeroed, _keeping(findings), maps=bool(plan.maps), places=places)
    lost = np.flatnonzero(removal.removed & ~found.removed)
    if len(lost):
        raise PlanError(
            "the plan removes channels that carry no constant in this model",
            at=f'group "{findings.groups[findings.solution.group_of(lost[0])].name}"',
            why=found.reasons.get(int(lost[0]), ""),
            do="make the plan with this model's `analyze`",
        )
    made = _planned(findings, found, plan.reasons)
    return replace(made, plan=replace(plan, biases=made.plan.biases, maps=made.plan.maps))


def _planned(findings: Findings, found: Folding, reasons: tuple[str, ...]) -> Planned:
    plan = plan_from(findings, found.removed, reasons)
    constants = found.constants
    plan = replace(plan, zeroed=found.zeroed, biases=tuple(constants.biases), maps=tuple(constants.maps))
    return Planned(plan, Removal(findings.solution, found.removed), constants)


def _refuse(findings: Findings, border: str) -> None:
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


def _keeping(findings: Findings) -> Any:
    scores = np.zeros(findings.solution.channels)

    def keep(removed: Bools) -> None:
        keep_enough(findings, removed, scores)
        keep_equal_widths(findings, removed, scores)

    return keep


# -- weights that are zero ------------------------------------------------------------------------------


def zero_rows(findings: Findings) -> dict[str, torch.Tensor]:
    """A mask, True = keep, for every layer that has outputs whose weights are all zero."""
    masks: dict[str, torch.Tensor] = {}
    for name, tensor in findings.tensors.items():
        dim = opened(findings, name)
        if dim is not None and tensor.is_floating_point():
            live = _live(tensor, dim)
            if not live.all():
                masks[name.rpartition(".")[0] if name.endswith(".weight") else name] = torch.from_numpy(live)
    return masks


def _zero_already(findings: Findings, found: Folding) -> Removed:
    """The zeros in the parameters of removed channels and carriers: the plan needs these to be zero."""
    removal, zero = Removal(findings.solution, found.removed | found.carriers), Removed()
    tensors = findings.captured.tensors
    trained = {name: tensors[name] for name in tensors.names(PARAMETER)}
    for axis in findings.axes:
        kept = removal.kept(axis.vector)
        if kept is None or axis.parameter not in trained or not trained[axis.parameter].is_floating_point():
            continue
        gone = np.flatnonzero(~kept & ~_live(trained[axis.parameter], axis.dim)).tolist()
        if gone:
            for name in findings.names_of(axis.parameter):
                zero.setdefault(name, {})[axis.dim] = gone
    return zero


def _zeros_that_stay(findings: Findings, found: Folding) -> tuple[str, ...]:
    """Per layer, the outputs that are zero and stay, with the reason of the first of them."""
    rows = zero_rows(findings)
    lines, written = [], _writers(findings) if rows else {}
    for layer, live in rows.items():
        name = f"{layer}.weight" if f"{layer}.weight" in findings.tensors else layer
        columns = _columns(findings, name)
        gone = np.zeros(len(live), dtype=bool)
        for column in columns:
            gone |= (column >= 0) & found.removed[column]
        left = np.flatnonzero(~live.numpy() & ~gone)
        if len(left):
            channels = [int(c) for column in columns for c in column[left] if c >= 0]
            others = dict.fromkeys(w for c in channels[:1] for w in written.get(c, ()) if w != name)
            listed = ", ".join(f'"{other}"' for other in list(others)[:3])
            why = f"they are not zero in {listed}" if others else ""
            why = why or next((found.reasons[c] for c in channels if c in found.reasons), "") or _held(findings, name)
            listed = ", ".join(map(str, left[:6])) + (", ..." if len(left) > 6 else "")
            lines.append(f'"{layer}": {len(left)} channels without weights stay ({listed}): {why}')
    return tuple(lines)


def _writers(findings: Findings) -> dict[int, list[str]]:
    """Channel -> the layers' weights that are not zero there."""
    made: dict[int, list[str]] = {}
    for name, tensor in findings.tensors.items():
        dim = opened(findings, name)
        if dim is not None and tensor.is_floating_point():
            live = _live(tensor, dim)
            for column in _columns(findings, name):
                for channel in np.unique(column[live & (column >= 0)]).tolist():
                    made.setdefault(channel, []).append(name)
    return made


def _columns(findings: Findings, name: str) -> list[Ints]:
    """Per column of the output dimension of a layer's weight, the channel of every slot; -1 for none."""
    dim = opened(findings, name)
    known = dim is not None and findings.has_axis(name, dim)
    return findings.solution.channels_of(findings.axis_vector(name, dim)) if dim is not None and known else []


def _live(tensor: torch.Tensor, dim: int) -> Bools:
    """True for the slots of a dimension that are not all zero."""
    flags = (tensor.detach() != 0).movedim(dim, 0).reshape(tensor.shape[dim], -1).any(1)
    return np.asarray(flags.cpu().numpy(), dtype=bool)


def _held(findings: Findings, name: str) -> str:
    for locked in findings.locked:
        if (name, opened(findings, name)) in locked.slots:
            return str(locked.event)
    return "their group is ignored, or its removal changes a statistic"


def _channels_that_stay(findings: Findings, wanted: Bools, found: Folding) -> tuple[str, ...]:
    """Per group and reason, how many of the channels that were asked for stay."""
    counts: dict[tuple[int, str], int] = {}
    for channel in np.flatnonzero(wanted & ~found.removed).tolist():
        key = (findings.solution.group_of(channel), found.reasons.get(channel, ""))
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        f'"{findings.groups[group].name}": {count} of the channels asked for stay: {why}'
        for (group, why), count in counts.items()
    )
