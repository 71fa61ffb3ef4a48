"""The rewrite of the path "hooks": layers are smaller, and a forward hook fills their outputs up with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.hookable import outputs_behind_hooks
from fxprune.channels.groups import Removal

KEPT = "fxprune_kept"


class Reinsert:
    """A forward hook: [.., kept, ..] becomes [.., size, ..], zero where channels were removed.

    dim: the channel dimension of the output, counted from the end.
    """

    def __init__(self, dim: int, size: int) -> None:
        self.dim, self.size = dim, size

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """The output at its original size."""
        shape = list(output.shape)
        shape[self.dim] = self.size
        return output.new_zeros(shape).index_copy(self.dim, getattr(module, KEPT), output)


def reinsert(small: nn.Module, findings: Findings, removal: Removal) -> None:
    """Register a hook on every layer of `small` that lost outputs, and a buffer with the positions of the kept ones."""
    for path, layer, vector in outputs_behind_hooks(findings):
        kept = removal.kept(vector)
        if kept is None:
            continue
        positions = torch.from_numpy(np.flatnonzero(kept)).to(layer.weight.device)
        module = small.get_submodule(path)
        module.register_buffer(KEPT, positions, persistent=False)
        module.register_forward_hook(Reinsert(-1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim, len(kept)))
