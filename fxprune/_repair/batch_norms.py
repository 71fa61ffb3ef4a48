"""Statistics of batch norms, measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune._repair.batches import DataPart
from fxprune._repair.lanes import Model
from fxprune._repair.pages import Pages
from fxprune.errors import InputError
from fxprune.progress import bar
from fxprune.running.processes import ALONE, Processes


def take_statistics(
    model: nn.Module,
    parts: Sequence[DataPart],
    processes: Processes = ALONE,
    *,
    pages: Pages | None = None,
    progress: bool = False,
) -> int:
    """Set the running statistics of all batch norms to the mean over the parts, in place. Returns their number.

    All other layers are in evaluation mode meanwhile. Nothing else of the model changes.

    Raises `InputError` where a batch norm reads numbers that are not finite.
    """
    named = {name: module for name, module in model.named_modules() if _has_statistics(module)}
    norms = list(named.values())
    own = {id(tensor) for norm in norms for tensor in norm.buffers(recurse=False)}
    others = {id(tensor) for tensor in model.buffers()} - own
    watched = Model(model, written=others, pages=pages or Pages(0))
    for norm in norms:
        norm.reset_running_stats()

    def measuring(copied: nn.Module) -> None:
        copied.eval()
        for module in copied.modules():
            if _has_statistics(module):
                module.training, module.momentum = True, None  # the mean over all batches

    with torch.no_grad():
        for part in bar(parts, what="statistics", unit="batch", show=progress):
            watched.run(part, measuring)
            _check_finite(named, part)
        total = sum(processes.all(len(parts)))
        if processes.group is not None and total:
            for norm in norms:
                for mean in (norm.running_mean, norm.running_var):
                    if mean is not None:
                        processes.add([mean.mul_(len(parts) / total)])
                if norm.num_batches_tracked is not None:
                    processes.add([norm.num_batches_tracked])
    return len(norms)


def _has_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """True for a batch norm with running statistics."""
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _check_finite(norms: Mapping[str, nn.Module], part: DataPart) -> None:
    """Raises `InputError` for the first norm whose statistics are not finite. part: what it has read last."""
    for name, norm in norms.items():
        if not all(bool(tensor.isfinite().all()) for tensor in norm.buffers(recurse=False)):
            raise InputError(
                "a batch norm reads numbers that are not finite",
                at=f'"{name}", batch {part.batch}',
                why="its running mean and variance would be NaN or infinite",
                do="look for the cause in that batch, or leave it out",
            )
