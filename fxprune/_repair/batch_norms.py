"""Statistics of batch norms, measured again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from fxprune.capture.inputs import Inputs


def take_statistics(model: nn.Module, batches: Sequence[Inputs], *, progress: bool = False) -> int:
    """Set the running statistics of all batch norms to the mean over the batches, in place. Returns their number.

    All other layers are in evaluation mode meanwhile. Modes and momenta are as before afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.training = True
        with torch.no_grad():
            for args, kwargs in tqdm(batches, desc="statistics", unit="batch", disable=not progress):
                model(*args, **kwargs)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
