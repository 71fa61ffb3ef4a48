"""The options that name data: `--data`, `--loss`, `--repair`."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

import fxprune
from fxprune.cli import models
from fxprune.cli.usage import UsageError
from fxprune.criteria import MEASURED, save_scores
from fxprune.criteria.from_data import takes_loss


def check_data(options: argparse.Namespace) -> None:
    """Raises `UsageError` for data or a loss that are missing or without effect."""
    if options.scores is not None and options.importance is not None:
        why = "both rank the channels"
        raise UsageError("--importance and --scores were given", why=why, do="leave one of them out")
    if options.scores is not None and options.save_scores is not None:
        why = f"the scores are those of {options.scores}"
        raise UsageError("--save-scores is without effect here", why=why, do="leave it out")
    measured = options.importance in MEASURED
    takes = takes_loss(options.importance) if measured else None
    if options.data is None and (measured or options.repair is True):
        what = f"--importance {options.importance}" if measured else "--repair without a loader"
        do = f"add --data package.module:loader{' and --loss package.module:loss' if takes else ''}"
        raise UsageError(f"{what} needs --data", why="nothing can be measured without batches", do=do)
    if takes and options.loss is None:
        why = "it is measured by gradients"
        raise UsageError(
            f"--importance {options.importance} needs --loss", why=why, do="add --loss package.module:loss"
        )
    if options.data is not None and not measured and options.repair is not True:
        why = "no importance is measured, and nothing is repaired on it"
        do = f"choose --importance from {', '.join(MEASURED)}"
        if options.command == "prune":
            do = f"add --repair, or {do}"
        raise UsageError("--data is without effect here", why=why, do=do)
    if options.loss is not None and takes is None:
        raise UsageError("--loss is without effect here", why="the importance takes no loss", do="leave it out")


def data_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `transform` that the options name."""
    found: dict[str, Any] = {}
    if options.data is not None:
        found["data"] = models.batches(options.data, "--data")
    if options.loss is not None:
        found["loss"] = models.function(options.loss, "--loss")
    if options.repair is not None:
        found["repair"] = True if options.repair is True else models.batches(options.repair, "--repair")
        found["repair_mode"] = options.repair_mode or "weights"
    return found


def measure_scores(
    options: argparse.Namespace, chosen: dict[str, Any], model: nn.Module, inputs: Any
) -> dict[str, Any]:
    """The arguments of `transform` with the scores of the importance in its place, which are written to a file too."""
    rest = {name: value for name, value in chosen.items() if name not in ("importance", "data", "loss", "scores")}
    data = chosen.get("data")
    if rest.get("repair") is True:
        rest["data"] = data = list(data or ())
    settings = {name: getattr(options, name) for name in ("path", "prefer", "norms", "strict", "outputs")}
    analysis = fxprune.analyze(model, inputs, **settings)
    importance = chosen.get("importance", "l2")
    measured = {"data": data, "loss": chosen.get("loss")} if importance in MEASURED else {}
    scores = analysis.scores(importance, seed=options.seed, **measured)
    save_scores(scores, options.save_scores)
    return {**rest, "scores": scores}
