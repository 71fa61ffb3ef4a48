"""The options of a command line that say which channels go, as arguments of `transform`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fxprune.cli.usage import UsageError, ratio_of, unique_dict

RANKING_OPTIONS = tuple("importance scores save_scores round_to scope counts uniform min_channels max_ratio".split())
FILTER_OPTIONS = ("ignore", "exact")
BRANCH_OPTIONS = ("drop", "depth")

CONFIG = "config"
"""The value of `--uniform` that is no pattern: the config of the model says which widths are equal."""


def choices_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `transform` that choose channels. Raises `UsageError` for options without effect."""
    ratio = ratio_of(options.ratio)
    given: dict[str, Any] = {"ratio": ratio, "masks": options.masks, "plan": options.plan}
    given["keep"] = unique_dict("--keep", options.keep or ()) or None
    options.counts = unique_dict("--counts", options.counts or ())
    said = [name for name, value in given.items() if value is not None] or ["counts"] * bool(options.counts)
    said = said or ["drop"] * bool(options.drop)
    if len(said) != 1:
        why = " and ".join(f"--{name}" for name in said) + " were given" if said else "none of them was given"
        what = "say which channels to remove: exactly one of --ratio, --keep, --masks and --plan, or --counts or --drop"
        do = f"leave out all but --{said[0]}, or another of them" if said else "add --ratio 0.5, or another of them"
        raise UsageError(what, why=why, do=do)
    everything = (*RANKING_OPTIONS, *FILTER_OPTIONS, *BRANCH_OPTIONS, "bias", "border")
    chosen = {name: getattr(options, name) for name in everything}
    chosen = {name: value for name, value in chosen.items() if value not in (None, [], {}, False)}
    chosen |= uniform_of(options.uniform)
    idle = {
        "plan": everything,
        "masks": (*RANKING_OPTIONS, "depth"),
        "drop": tuple(name for name in everything if name != "drop"),
        "keep": (),
    }.get(said[0], ("scope", "depth"))
    whole = ("uniform",) if chosen.get("uniform") == CONFIG and said[0] in ("plan", "drop") else ()  # it has the config
    for name in idle:
        if name in chosen and name not in whole:
            why = f"--{said[0]} says already which channels go"
            raise UsageError(f"--{name.replace('_', '-')} is without effect here", why=why, do="leave it out")
    folding = chosen.get("bias") == "fold" or (said[0] == "masks" and "bias" not in chosen)
    if "border" in chosen and not folding:
        raise UsageError("--border is without effect here", why="no constants are folded", do="add --bias fold")
    if said[0] == "plan":
        return {name: chosen[name] for name in whole if name in chosen}
    return {**chosen, **({said[0]: given[said[0]]} if said[0] in given else {}), "seed": options.seed}


def uniform_of(patterns: Sequence[str] | None) -> dict[str, Any]:
    """The argument `uniform` that the words of `--uniform` mean; none for no words. Raises `UsageError`."""
    if not patterns:
        return {}
    if CONFIG not in patterns:
        return {"uniform": list(patterns)}
    if len(patterns) > 1:
        why = "the config of the model says which widths are equal"
        raise UsageError("--uniform config stands alone", why=why, do="leave out the other --uniform")
    return {"uniform": CONFIG}
