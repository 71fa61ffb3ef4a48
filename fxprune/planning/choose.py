"""The choice of channels to remove: by a ratio and scores, or by masks."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from fxprune.analysis.adapters import low_rank_adapters
from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import fits
from fxprune.channels.groups import Bools, Removal
from fxprune.costs import LatencyFile, LatencyTable
from fxprune.criteria import Importance, comparable, scores_of
from fxprune.errors import PlanError
from fxprune.files import PathLike
from fxprune.planning.alignment import best_multiple
from fxprune.planning.budgets import budgets_of, checked_keys
from fxprune.planning.enough import keep_enough
from fxprune.planning.figures import Meter
from fxprune.planning.fitting import Widths, within
from fxprune.planning.keeping import Scores
from fxprune.planning.masks import every_channel, removed_by_masks
from fxprune.planning.scopes import Spread, scope_named
from fxprune.planning.select import by_group, ignored_groups, importance_by_pattern
from fxprune.planning.shared_settings import keep_equal_widths


def choose(
    findings: Findings,
    *,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int | str = 1,
    exact: bool = False,
    seed: int | None = None,
    keep: Mapping[str, Any] | None = None,
    scope: str = "local",
    counts: Mapping[str, int] | None = None,
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
            width) is shrunk by both of its groups. A number does not prune the rank of low-rank adapters (LoRA); a
            pattern does.
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
        exact: only groups whose removal equals setting their slots to zero.
        seed: the seed of importance "random".
        keep: instead of a ratio, the cost that stays: {"params", "bytes", "macs" or "memory" (the peak of activations
            on the example inputs): a share in (0, 1], an integer, or a text with a unit such as "200 MB"; "latency": a
            share, or a text such as "5 ms"}. Several hold all at once. The plan is the largest within them.
        scope: how a budget is spread over the groups: "local" (the same share of each), "global" (all channels are
            ranked together), or "isomorphic" (those of groups with the same structure).
        counts: {pattern: the number of channels that stay}, for groups that neither ratio nor budget shall decide.
        min_channels: the least number of channels that stay in a group.
        max_ratio: the largest share that a group may lose; for a budget 0.9 by default, so that no group gets empty.
        latency_table: the folder that keeps measured latencies; by default it is in the user's cache directory. False
            keeps none.
        small: makes the smaller model that a removal leaves, which a latency is measured on.

    Raises `PlanError` for a request that makes no sense.
    """
    _check_one_request(ratio=ratio, masks=masks, keep=keep, counts=counts)
    _check_round_to(round_to)
    stay = ignored_groups(findings, ignore)
    if exact:
        stay |= set(findings.solution.groups_with(findings.inexact))
    if isinstance(masks, str):
        return every_channel(findings, masks, stay), ()
    if masks is not None:
        removed, reasons = removed_by_masks(findings, masks, stay)
        return removed, (*reasons, *keep_equal_widths(findings, removed, np.zeros(len(removed))))
    limits = _Limits(1, min_channels, _largest(max_ratio, keep))
    groups, fixed, why = _groups(findings, ratio, keep is not None, counts, stay)
    if not groups and not fixed:
        shares = _ratios(findings, ratio) if keep is None else [1.0] * len(findings.groups)
        return findings.solution.no_channel(), (why or _why_no_group(findings, shares, stay, exact))
    importance = importance_by_pattern(findings, importance)
    scores = scores_of(findings, importance, [*groups, *(findings.groups[number] for number in fixed)], seed)
    ranked = _Ranked(findings, scores, tuple(groups), fixed, limits, comparable(importance))
    table = partial(_table, findings, small, latency_table)
    if isinstance(round_to, str):
        round_to, told = best_multiple(findings, partial(ranked.widths, scope), table)
        why = (*why, told)
    if keep is None:
        spread = ranked.spread(round_to)
        removed, reasons = ranked.flags({g.number: spread.count(g, share) for g, share in groups.items()})
    else:
        meter = Meter(findings, checked_keys(keep), table)
        budgets = budgets_of(meter.of(), keep, meter.uncounted)
        removed, reasons = within(findings, budgets, ranked.widths(scope, round_to), meter)
    if not removed.any() and not reasons:
        reasons = (_why_rounding(groups, round_to),) if groups else ()
    return removed, (*reasons, *why)


def _table(
    findings: Findings, small: Callable[[Removal], nn.Module] | None, folder: PathLike | bool | None
) -> LatencyTable:
    """An empty table of latencies. The arguments are those of `choose`."""
    if small is None:
        raise PlanError("a latency needs small models to measure", do="pass small, a function that makes them")
    return LatencyTable(findings, small, LatencyFile.of(findings.model, folder))


def _groups(
    findings: Findings, ratio: Any, full: bool, counts: Any, stay: set[int]
) -> tuple[dict[Group, float], dict[int, int], tuple[str, ...]]:
    """The groups that lose channels, and the reasons why low-rank adapters do not.

    full: True for a budget, which may take all of every group. stay: the numbers of the groups that must stay.

    Returns first the groups with the share that goes, then group -> how many channels go, for those in `counts`.
    """
    adapters = frozenset() if isinstance(ratio, Mapping) else low_rank_adapters(findings) - stay
    ratios = [1.0] * len(findings.groups) if full else _ratios(findings, ratio)
    fixed = _fixed_counts(findings, counts)
    able = (g for g in findings.groups if g.number not in stay | adapters | fixed.keys() and ratios[g.number] > 0)
    return (
        {group: ratios[group.number] for group in able},
        fixed,
        _why_adapters_stay(findings, ratios, adapters - fixed.keys()),
    )


def _why_rounding(groups: Mapping[Group, float], round_to: int) -> str:
    """The reason why no group of a request loses a channel."""
    largest = max(groups, key=lambda group: group.size)
    return (
        f"rounding leaves every group whole: the largest has {largest.size} channels "
        f'("{largest.name}"), ratio {groups[largest]}, round_to {round_to}'
    )


def _flags(findings: Findings, scores: Scores, counts: Mapping[int, int]) -> tuple[Bools, tuple[str, ...]]:
    """The channels with the lowest scores, so many of each group, without those that the model needs.

    Returns with them the reasons why these stay.
    """
    removed = findings.solution.no_channel()
    for number, drop in counts.items():
        channels = findings.groups[number].channels
        removed[channels[np.argsort(scores[channels], kind="stable")[:drop]]] = True
    reasons = keep_enough(findings, removed, scores)
    return removed, (*reasons, *keep_equal_widths(findings, removed, scores))


@dataclass(frozen=True)
class _Limits:
    """The channels that every group keeps. The fields are arguments of `choose`."""

    round_to: int
    min_channels: int
    max_ratio: float

    def __post_init__(self) -> None:
        if isinstance(self.min_channels, bool) or not isinstance(self.min_channels, int) or self.min_channels < 1:
            raise PlanError(f"min_channels must be an integer of at least 1, not {self.min_channels!r}")
        if isinstance(self.max_ratio, bool) or not isinstance(self.max_ratio, float | int):
            raise PlanError(f"max_ratio must be a number, not {self.max_ratio!r}")
        if not 0 < self.max_ratio <= 1:
            raise PlanError(f"max_ratio must be in (0, 1], not {self.max_ratio!r}")

    def kept(self, size: int, ratio: float) -> int:
        """The channels that stay of a group, if this share goes."""
        return kept_count(size, ratio, self.round_to)

    def least(self, size: int) -> int:
        """The fewest channels that stay of a group."""
        return max(kept_count(size, self.max_ratio, self.round_to), min(self.min_channels, size))


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The groups that lose channels, with their scores.

    fixed: the number of a group -> how many channels go, for groups whose widths are given.
    comparable: True if the scores compare between groups as they are.
    """

    findings: Findings
    scores: Scores
    groups: Sequence[Group]
    fixed: Mapping[int, int]
    limits: _Limits
    comparable: bool

    def spread(self, multiple: int) -> Spread:
        """The channels that the groups may lose, if the widths are multiples of a number."""
        limits = replace(self.limits, round_to=multiple)
        most = {group.number: group.size - limits.least(group.size) for group in self.groups}
        return Spread(self.groups, most, limits.kept, self.comparable)

    def flags(self, gone: Mapping[int, int]) -> tuple[Bools, tuple[str, ...]]:
        """The channels that are removed, if so many of each group go, and the reasons for others that stay."""
        return _flags(self.findings, self.scores, {**gone, **self.fixed})

    def widths(self, scope: str, multiple: int) -> Widths:
        """The widths of a plan by its level."""
        at = scope_named(scope)(self.findings, self.spread(multiple), self.scores)
        return Widths(at, self.flags, multiple)


def _largest(max_ratio: float | None, keep: Any) -> float:
    """The largest share that a group may lose: a ratio is taken literally, a budget leaves a tenth."""
    if max_ratio is not None:
        return max_ratio
    return 1.0 if keep is None else 0.9


def _fixed_counts(findings: Findings, counts: Any) -> dict[int, int]:
    """The number of channels that each group of `counts` loses."""
    if counts is None:
        return {}
    if not isinstance(counts, Mapping):
        raise PlanError("counts must be a dict from patterns to numbers", why=f"it is a {type(counts).__name__}")
    for pattern, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
            raise PlanError("a count must be an integer of at least 1", at=f"counts={{{pattern!r}: {count!r}}}")
    chosen = by_group(findings, counts, what="counts")
    for number, count in chosen.items():
        if count > findings.groups[number].size:
            name, size = findings.groups[number].name, findings.groups[number].size
            raise PlanError("a group has fewer channels than shall stay", at=f'"{name}"', why=f"{size} < {count}")
    return {number: findings.groups[number].size - int(count) for number, count in chosen.items()}


def _check_one_request(**given: Any) -> None:
    """Raises `PlanError` unless exactly one of ratio, masks and keep is given, or counts alone."""
    others = [name for name in ("ratio", "masks", "keep") if given[name] is not None]
    if len(others) > 1 or not (others or given["counts"] is not None):
        raise PlanError(
            "say which channels to remove: exactly one of ratio, masks, keep and counts",
            why=f"given: {', '.join(others) or 'none of them'}",
        )
    if given["masks"] is not None and given["counts"] is not None:
        raise PlanError("masks say already which channels go", why="counts were given too", do="leave one of them out")


def kept_count(size: int, ratio: float, round_to: int) -> int:
    """The number of `size` channels that stay: at least one, a multiple of `round_to` where the group allows it.

    >>> kept_count(64, 0.3, 1), kept_count(64, 0.3, 8), kept_count(58, 0.5, 8), kept_count(4, 0.5, 8)
    (45, 48, 32, 4)
    """
    keep = max(1, size - int(ratio * size + 1e-9))
    if round_to == 1:
        return keep
    if size < round_to:
        return size
    rounded = -(-keep // round_to) * round_to
    return rounded if rounded <= size else size // round_to * round_to


def _check_round_to(round_to: int | str) -> None:
    if round_to == "auto":
        return
    if isinstance(round_to, bool) or not isinstance(round_to, numbers.Integral) or round_to < 1:
        raise PlanError(f'round_to must be an integer of at least 1 or "auto", not {round_to!r}')


def _check_ratio(ratio: Any) -> float:
    if not fits(ratio, float) or not 0 <= float(ratio) < 1:
        raise PlanError(
            f"ratio must be a number in [0, 1), not {ratio!r}",
            why="it is the share of channels to remove; at least one channel of a group stays",
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


def _why_no_group(findings: Findings, ratios: list[float], stay: set[int], exact: bool) -> tuple[str, ...]:
    """The reasons why a ratio is meant for no group. stay: the numbers of the groups that must stay."""
    if not findings.groups:
        held = [str(locked) for locked in findings.locked[:5]]
        return ("no channel of this model can be removed", *held)
    asked = [number for number, ratio in enumerate(ratios) if ratio > 0]
    if not asked:
        return ("the ratio is 0 for every group that can lose channels",)
    inexact = set(findings.solution.groups_with(findings.inexact)) if exact else set()
    causes = {"inexact (exact=True)" if number in inexact else "ignored" for number in asked}
    which = "groups" if len(asked) == len(findings.groups) else "groups with a ratio"
    return (f"all {len(asked)} {which} are {' or '.join(sorted(causes))}",)
