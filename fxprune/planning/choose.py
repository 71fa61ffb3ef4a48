"""The choice of channels to remove: by a ratio and scores, or by masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune.analysis.adapters import low_rank_adapters
from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.without_result import groups_without_result
from fxprune.arguments import fits
from fxprune.capture.kept_buffers import TAKE_FROM_SELF, called_parts
from fxprune.channels.groups import Bools, Removal
from fxprune.costs import LatencyFile, LatencyTable
from fxprune.costs.latency import runnable
from fxprune.criteria import Importance, comparable, in_loss, scores_of
from fxprune.criteria.expert_calls import ExpertImportance
from fxprune.errors import PlanError, counted
from fxprune.files import PathLike
from fxprune.given_seeds import check_seed
from fxprune.planning.alignment import best_multiple
from fxprune.planning.budgets import Budget, budgets_of, checked_keys
from fxprune.planning.concerned import concerned
from fxprune.planning.figures import TIMED, Meter
from fxprune.planning.fitting import within
from fxprune.planning.fixed_counts import Fixed, fixed_counts
from fxprune.planning.limits import Limits, check_round_to, limits_of
from fxprune.planning.masks import every_channel, removed_by_masks
from fxprune.planning.ranked import Ranked
from fxprune.planning.scopes import Units, costs_of
from fxprune.planning.select import by_group, ignored_groups, importance_by_pattern, several_ignored, several_meant
from fxprune.planning.shared_settings import EQUAL_COUNTS, keep_equal_widths
from fxprune.planning.uniform import EqualWidths, equal_widths


def choose(
    findings: Findings,
    *,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int | str = 1,
    exact: bool | str = False,
    seed: int | None = None,
    keep: Mapping[str, Any] | None = None,
    scope: str = "local",
    counts: Mapping[Any, int] | None = None,
    uniform: Any = (),
    min_channels: int = 1,
    max_ratio: float | None = None,
    latency_table: PathLike | bool | None = None,
    small: Callable[[Removal], nn.Module] | None = None,
) -> tuple[Bools, tuple[str, ...]]:
    """The channels to remove, as flags, and the reasons why something that was asked for stays.

    Args:
        ratio: the share of every group's channels to remove, in [0, 1), rounded down. Or {pattern: share}, with
            patterns such as "layer1.0.conv2" or "layer1.0.conv2:block width" (see `fxprune.names`) or the number of a
            group of this analysis; groups that no pattern names stay. A dimension that is a grid (conv groups x their
            width) is shrunk by both of its groups. A number does not prune the rank of low-rank adapters (LoRA), nor
            layers from which no result is computed; a pattern does.
        masks: instead of a ratio, {pattern: bool tensor [out_channels], True = keep} for each layer that is named.
            Channels that are coupled to a masked one are removed with it; those that cannot be removed stay, and
            the reasons say why. "zeros" chooses every channel.
        importance: "l2", "l1" (norms of everything that is removed with a channel), "fpgm" (distance of the
            producer's filter from the group's others, see `fxprune.criteria`), "lamp" (the share among those that are
            not smaller), "bn_scale" (the weight of the batch norm), "random"; a callable that takes a `Group` and
            returns one score per channel; or {pattern: scores}. The lowest are removed. Criteria that need data, such
            as "taylor", are measured before: see `transform`.
        ignore: a pattern or several; the output channels of the layers that they name stay.
        round_to: the number of channels kept in a group is a multiple of this where the group is large enough. "auto"
            measures which multiple pays on this machine, and a reason says so.
        exact: only groups whose removal equals setting their slots to zero. A text says what asks for it, in reasons.
        seed: the seed of importance "random".
        keep: instead of a ratio, the cost that stays: {"params", "bytes", "macs", "memory" (the peak of activations on
            the example inputs), "cache" (the keys, values and states that the model returns for them) or
            "active_params" (of a mixture of experts, for one token): a share in (0, 1], an integer, or a text with a
            unit such as "200 MB"; "latency" or "decode_latency" (of the next token, with the cache): a share, or a text
            such as "5 ms"}. Several hold all at once. The plan is within them, and near to one, where steps are not too
            large for that.
        scope: how a budget is spread over the groups: "local" (the same share of each), "global" (all channels are
            ranked together), or "isomorphic" (those of groups with the same structure).
        counts: {pattern: the number of channels that stay}, for groups that neither ratio nor budget shall decide.
            Groups that `ignore` or `exact` holds stay whole; a count that breaks a limit that is given is refused.
        uniform: a pattern or several that name repeated blocks, such as "layers.*.mlp": groups at the same place in
            these blocks keep equally many channels, the mean of what each would keep. If one of them stays whole, so do
            the others; a count for one holds for all. "config": only what the config of a Hugging Face model can say is
            removed; groups that the same number of it counts keep the same share.
        min_channels: the least number of channels that stay in a group.
        max_ratio: the largest share that a group may lose; for a budget 0.9 by default, so that no group gets empty.
        latency_table: the folder that keeps measured latencies; by default it is in the user's cache directory. False
            keeps none.
        small: makes the smaller model that a removal leaves, which a latency is measured on.

    Raises `PlanError` for a request that makes no sense.
    """
    _check_one_request(ratio=ratio, masks=masks, keep=keep, counts=counts)
    check_seed(seed)
    check_round_to(round_to)
    stay = _staying(findings, ignore, exact)
    if masks is not None:
        return _by_masks(findings, masks, set(stay))
    limits = limits_of(round_to, min_channels, max_ratio, keep)
    equal, held = equal_widths(findings, uniform)
    given = fixed_counts(findings, counts, {**held, **stay}, limits, largest_given=max_ratio is not None)
    chosen = _groups(findings, ratio, keep is not None, {**held, **stay}, equal, given)
    groups, fixed, why = chosen.groups, chosen.fixed, (*dict.fromkeys(held.values()), *chosen.reasons)
    if not groups and not fixed:
        shares = _ratios(findings, ratio) if keep is None else [1.0] * len(findings.groups)
        return findings.solution.no_channel(), (why or _why_no_group(findings, shares, set(stay), exact))
    table = partial(_table, findings, small, latency_table)
    meter = None if keep is None else Meter(findings, checked_keys(keep), table)
    budgets = [] if meter is None or keep is None else budgets_of(meter.of(), keep, meter.uncounted)
    groups, beside = concerned(findings, groups, equal, meter)
    by_pattern = importance_by_pattern(findings, importance)
    scores = scores_of(findings, by_pattern, [*groups, *(findings.groups[number] for number in fixed)], seed)
    do = EQUAL_COUNTS if isinstance(ratio, Mapping) or counts is not None else ""
    ranked = Ranked(findings, scores, tuple(groups), fixed, equal, limits, _units(findings, by_pattern, keep), do)
    if isinstance(round_to, str):
        round_to, told = best_multiple(findings, partial(ranked.widths, scope), table, meter, budgets)
        why = (*why, told)
    removed, reasons = _flags(ranked, groups, meter, budgets, scope, round_to)
    if not removed.any() and not reasons:
        reasons = _why_nothing(groups, replace(limits, round_to=round_to), keep)
    return _with_protected(findings, importance, removed), (*reasons, *why, *beside, *several_ignored(findings, ignore))


def _flags(
    ranked: Ranked,
    groups: Mapping[Group, float],
    meter: Meter | None,
    budgets: Sequence[Budget],
    scope: str,
    multiple: int,
) -> tuple[Bools, tuple[str, ...]]:
    """The channels that go by the ratios of the groups, or by budgets if there is a meter; the reasons for others."""
    if meter is None:
        return ranked.by_ratio(groups, multiple)
    return within(ranked.findings, budgets, ranked.widths(scope, multiple), meter)


def _units(findings: Findings, by_pattern: Mapping[str, Importance], keep: Any) -> Units:
    """The units of the scores of different groups; those that are a part of the loss count by the cost of a channel."""
    return Units(comparable(by_pattern), costs_of(findings, keep) if in_loss(by_pattern) and keep else None)


def _with_protected(findings: Findings, importance: Importance, removed: Bools) -> Bools:
    """The same channels. Raises `PlanError` where experts are among them that the importance protects."""
    if isinstance(importance, ExpertImportance):
        importance.refuse_lost(kept_slots(findings, Removal(findings.solution, removed)))
    return removed


def _by_masks(findings: Findings, masks: Mapping[str, Any] | str, stay: set[int]) -> tuple[Bools, tuple[str, ...]]:
    """The channels that masks remove, and the reasons why some stay. stay: the numbers of groups that must."""
    if isinstance(masks, str):
        return every_channel(findings, masks, stay), ()
    removed, reasons = removed_by_masks(findings, masks, stay)
    return removed, (*reasons, *keep_equal_widths(findings, removed, np.zeros(len(removed))))


def _table(
    findings: Findings, small: Callable[[Removal], nn.Module] | None, folder: PathLike | bool | None, key: str
) -> LatencyTable:
    """An empty table of latencies. The arguments are those of `choose`. key: the measure, a name in `TIMED`."""
    if small is None:
        raise PlanError("a latency needs small models to measure", do="pass small, a function that makes them")
    runs = None if TIMED[key] is runnable else TIMED[key]
    return LatencyTable(findings, small, LatencyFile.of(findings.model, folder), runs=runs)


def _staying(findings: Findings, ignore: Any, exact: bool | str) -> dict[int, str]:
    """Number of a group that must stay -> why."""
    stay = dict.fromkeys(ignored_groups(findings, ignore), "ignore names it")
    if exact:
        stay |= dict.fromkeys(
            findings.solution.groups_with(findings.inexact), f"a statistic would change ({_asking(exact)})"
        )
    return stay


def _asking(exact: bool | str) -> str:
    """The option that asks for exact groups."""
    return exact if isinstance(exact, str) else "exact=True"


@dataclass(frozen=True)
class _Chosen:
    """The groups that a request is about.

    groups: those that lose channels -> the share that goes. fixed: number of a group -> how many channels go.
    reasons: why others stay.
    """

    groups: dict[Group, float]
    fixed: dict[int, int]
    reasons: tuple[str, ...]


def _groups(
    findings: Findings, ratio: Any, full: bool, stay: Mapping[int, str], equal: EqualWidths, fixed: Fixed
) -> _Chosen:
    """The groups that lose channels.

    full: True for a budget, which may take all of every group. stay: number of a group that must stay -> why.
    fixed: the counts that are given, and their reasons.
    """
    plain = not isinstance(ratio, Mapping)
    adapters = low_rank_adapters(findings) - stay.keys() if plain else frozenset()
    idle = groups_without_result(findings) - stay.keys() if plain else frozenset()
    ratios = [1.0] * len(findings.groups) if full else _ratios(findings, ratio)
    given = equal.with_fixed(fixed.gone, findings.groups, stay)
    asked = {g.number for g in findings.groups if g.number not in stay.keys() | adapters and ratios[g.number] > 0}
    able = asked - idle - given.keys()
    idle -= {n for members in equal.sets if able.intersection(members) for n in members}
    able = asked - idle - given.keys()
    reasons = [*fixed.reasons, *several_meant(findings, ratio, what="ratio")]
    reasons += _why_adapters_stay(findings, ratios, adapters - given.keys())
    reasons += _why_idle_stay(findings, (idle & asked) - given.keys())
    for members in equal.sets:
        still = [number for number in members if number not in able | given.keys()]
        if still and able.intersection(members):
            able -= set(members)
            first, cause = findings.groups[members[0]].name, findings.groups[still[0]].name
            why, more = stay.get(still[0], "nothing asks for its channels"), len(members) - 1
            reasons.append(f'uniform: "{first}" and {more} more keep all channels, as "{cause}" does: {why}')
    groups = {group: ratios[group.number] for group in findings.groups if group.number in able}
    return _Chosen(groups, given, tuple(reasons))


def _why_nothing(groups: Mapping[Group, float], limits: Limits, keep: Any) -> tuple[str, ...]:
    """The reason why no group of a request loses a channel."""
    if keep is not None:
        asked = ", ".join(f"{key}={value!r}" for key, value in keep.items())
        return (f"the model is within the budget as it is ({asked})",)
    if not groups:
        return ()
    largest = max(groups, key=lambda group: group.size)
    cause = f"min_channels={limits.min_channels}" if limits.min_channels > 1 else "rounding"
    return (
        f"{cause} leaves every group whole: the largest has {counted(largest.size, 'channel')} "
        f'("{largest.name}"), ratio {groups[largest]}, round_to {limits.round_to}',
    )


def _check_one_request(**given: Any) -> None:
    """Raises `PlanError` unless exactly one of ratio, masks and keep is given, or counts alone."""
    others = [name for name in ("ratio", "masks", "keep") if given[name] is not None]
    if len(others) > 1 or not (others or given["counts"] is not None):
        raise PlanError(
            "say which channels to remove: exactly one of ratio, masks, keep and counts",
            why=f"given: {', '.join(others) or 'none of them'}",
            do='pass for example keep={"macs": 0.5}' if not others else "leave all but one of them out",
        )
    if given["masks"] is not None and given["counts"] is not None:
        raise PlanError("masks say already which channels go", why="counts were given too", do="leave one of them out")


def _check_ratio(ratio: Any) -> float:
    if not fits(ratio, float) or not 0 <= float(ratio) < 1:
        raise PlanError(
            f"ratio must be a number in [0, 1), not {ratio!r}",
            why="it is the share of channels to remove; at least one channel of a group stays",
            do="pass ratio=0.5, or another share",
        )
    return float(ratio)


def _ratios(findings: Findings, ratio: Any) -> list[float]:
    """The share to remove of every group, by its number; 0 without a ratio, and for groups that no pattern names."""
    if ratio is None:
        return [0.0] * len(findings.groups)
    if not isinstance(ratio, Mapping):
        return [_check_ratio(ratio)] * len(findings.groups)
    shares = {pattern: _check_ratio(share) for pattern, share in ratio.items()}
    chosen = by_group(findings, shares, what="ratio")
    return [chosen.get(number, 0.0) for number in range(len(findings.groups))]


def _why_adapters_stay(findings: Findings, ratios: list[float], adapters: frozenset[int]) -> tuple[str, ...]:
    """The reason why low-rank adapters keep their rank, and how to ask for it.

    adapters: the numbers of their groups.
    """
    asked = [findings.groups[number].name for number in sorted(adapters) if ratios[number] > 0]
    if not asked:
        return ()
    listed = ", ".join(f'"{name}"' for name in asked[:3]) + (f", ... {len(asked) - 3} more" if len(asked) > 3 else "")
    return (
        f"low-rank adapters keep their rank ({listed}): a plain ratio does not prune it, a pattern does, such as "
        f'ratio={{"{asked[0]}": 0.5}}',
    )


def _why_idle_stay(findings: Findings, idle: Collection[int]) -> tuple[str, ...]:
    """The reason why groups that reach no result keep their width, and what to do. idle: their numbers."""
    if not idle:
        return ()
    names = list(dict.fromkeys(findings.groups[number].name for number in sorted(idle)))
    listed = ", ".join(f'"{name}"' for name in names[:3]) + (f", ... {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"no tensor of a result is computed from {listed}, which forward reads: a plain ratio leaves their width to "
        "other code, which may count on it; name that code with `methods`, or ask with a pattern, such as "
        f'ratio={{"{names[0]}": 0.5}}',
    )


STATISTIC = "since a statistic would change"
"""Part of the reason of `why_inexact_stay`."""


def why_inexact_stay(findings: Findings, ratio: Any, ignore: Any, *, exact: bool) -> tuple[str, ...]:
    """The reason why groups that a ratio is meant for stay whole where constants are folded, and what to do.

    exact: True if the user asks for exact groups too.
    """
    inexact = set(findings.solution.groups_with(findings.inexact)) - set(ignored_groups(findings, ignore))
    shares = _ratios(findings, ratio)
    names = [findings.groups[number].name for number in sorted(inexact) if shares[number] > 0]
    if not names:
        return ()
    listed = ", ".join(f'"{name}"' for name in names[:6]) + (f", ... {len(names) - 6} more" if names[6:] else "")
    also = ", without exact=True" if exact else ""
    return (
        f'{counted(len(names), "group", "stay")} whole, {STATISTIC} ({listed}): bias="fold" takes exact groups alone; '
        f'pass bias="prune"{also}',
    )


def _calls_outside(findings: Findings) -> tuple[str, ...]:
    """The reason why a model has no channels whose code calls layers by a closure, and what to do."""
    if isinstance(findings.model, fx.GraphModule):
        return ()
    calls = called_parts(findings.model)
    return (f"{calls[0]}, and runs that, not what a copy has: {TAKE_FROM_SELF}",) if calls else ()


def _why_no_group(findings: Findings, ratios: list[float], stay: set[int], exact: bool | str) -> tuple[str, ...]:
    """The reasons why a ratio is meant for no group. stay: the numbers of the groups that must stay."""
    if not findings.groups:
        held = [str(locked) for locked in findings.locked[:5]]
        return ("no channel of this model can be removed", *_calls_outside(findings), *held)
    asked = [number for number, ratio in enumerate(ratios) if ratio > 0]
    if not asked:
        return ("the ratio is 0 for every group that can lose channels",)
    inexact = set(findings.solution.groups_with(findings.inexact)) if exact else set()
    causes = {f"inexact ({_asking(exact)})" if number in inexact else "ignored" for number in asked}
    which = "" if len(asked) == len(findings.groups) else " with a ratio"
    all_of_them = f"the only group{which} is" if len(asked) == 1 else f"all {len(asked)} groups{which} are"
    return (f"{all_of_them} {' or '.join(sorted(causes))}",)
