"""The list of weights that a recurrent layer keeps beside its parameters."""

from __future__ import annotations

from torch import nn


def refresh(module: nn.Module) -> None:
    """Make a recurrent layer's list of weights the list of its parameters, after these were replaced.

    The layer would do so itself in its next forward; until then the list would keep the old weights in memory. On a GPU
    this also puts the weights into one block of memory, which cuDNN needs.
    """
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
