"""The options that name data: `--data`, `--loss`, `--repair`."""

from __future__ import annotations

import argparse
from typing import Any

from fxprune.cli import models
from fxprune.cli.usage import UsageError
from fxprune.criteria import MEASURED
from fxprune.criteria.from_data import takes_loss


def check_data(options: argparse.Namespace) -> None:
    """Raises `UsageError` for data or a loss that are missing or without effect."""
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
        raise UsageError("--data is without effect here", why=why, do=f"choose --importance from {', '.join(MEASURED)}")
    if options.loss is not None and takes is None:
        raise UsageError("--loss is without effect here", why="the importance takes no loss", do="leave it out")


def data_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `transform` that the options name."""
    found: dict[str, Any] = {}
    if options.data is not None:
        found["data"] = models.batches(options.data)
    if options.loss is not None:
        found["loss"] = models.function(options.loss)
    if options.repair is not None:
        found["repair"] = True if options.repair is True else models.batches(options.repair)
        found["repair_mode"] = options.repair_mode or "weights"
    return found
