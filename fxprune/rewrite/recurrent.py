"""The list of weights that a recurrent layer keeps beside its parameters."""

from __future__ import annotations

from torch import nn


def refresh(module: nn.Module) -> None:
    """Make a recurrent layer's list of weights the list of its parameters, after these were replaced.

    It would notice in its next forward; until then it would keep the old ones in memory. On a GPU this also puts them
    into one block of memory, as cuDNN wants them.
    """
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
