"""Statistics of batch norms, measured again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from fxprune._repair.batches import DataPart
from fxprune._repair.lanes import Model
from fxprune.running.processes import ALONE, Processes


def take_statistics(
    model: nn.Module, parts: Sequence[DataPart], processes: Processes = ALONE, *, progress: bool = False
) -> int:
    """Set the running statistics of all batch norms to the mean over the parts, in place. Returns their number.

    All other layers are in evaluation mode meanwhile. Nothing else of the model changes.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    own = {id(tensor) for norm in norms for tensor in norm.buffers(recurse=False)}
    others = {id(tensor) for tensor in model.buffers()} - own
    watched = Model(model, written=others)
    for norm in norms:
        norm.reset_running_stats()

    def measuring(copied: nn.Module) -> None:
        copied.eval()
        for module in copied.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.training, module.momentum = True, None  # the mean over all batches

    with torch.no_grad():
        for part in tqdm(parts, desc="statistics", unit="batch", disable=not progress):
            watched.run(part, measuring)
        total = sum(processes.all(len(parts)))
        if processes.group is not None and total:
            for norm in norms:
                for mean in (norm.running_mean, norm.running_var):
                    if mean is not None:
                        processes.add([mean.mul_(len(parts) / total)])
                if norm.num_batches_tracked is not None:
                    processes.add([norm.num_batches_tracked])
    return len(norms)
