"""Inputs with noise, so that a fit to few samples does not learn these by heart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import Inputs


def takes_noise(value: Any) -> bool:
    """True for a tensor of fractions with several numbers in each sample, all of them finite."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or not value.numel():
        return False
    return value[0].numel() > 1 and bool(value.isfinite().all())


def with_noise(inputs: Inputs, share: float, generator: torch.Generator) -> Inputs:
    """Inputs to which Gaussian noise was added: x + share * (standard deviation of the numbers of its sample) * n.

    Tensors that are no fractions, or hold one number in each sample, stay as they are.

    >>> x = torch.tensor([[0.0, 2.0], [5.0, 5.0]])
    >>> (made,), _ = with_noise(((x,), {}), 0.1, torch.Generator().manual_seed(0))
    >>> (made[0] != x[0]).tolist(), made[1].tolist()  # the second sample has the same number everywhere
    ([True, True], [5.0, 5.0])
    """

    def noisy(value: Any) -> Any:
        if not takes_noise(value):
            return value
        spread = value.flatten(1).std(1).view(-1, *[1] * (value.ndim - 1))
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        return value + share * spread * drawn.to(value)

    made: Inputs = pytree.tree_map(noisy, inputs)
    return made
