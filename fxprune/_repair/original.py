"""The comparison of a model with the weights that a small model was made from."""

from __future__ import annotations

import torch
from torch import nn

from fxprune._record import Record, checksum
from fxprune.capture.tensors import PARAMETER, Tensors

MOST = 0.5
"""A weight is another one if a larger share of its numbers is."""


def has_other_weights(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if no weight of a small model, as it was made, is a part of the model's weight of the same name.

    known: the record of the small model. A small model that was trained has other weights than any original, so that
    nothing is known then.
    """
    if not known.weights or known.weights != checksum(small):
        return False
    ours, theirs, kept = Tensors.of(small), Tensors.of(model), known.plan.kept
    seen = False
    for name in ours.names(PARAMETER):
        if name in theirs and ours[name].ndim > 1 and ours[name].numel():
            part = theirs[name].detach()
            for dim, indices in kept.get(name, {}).items():
                part = part.index_select(dim, torch.tensor(indices, device=part.device))
            if part.shape != ours[name].shape:
                continue
            if (part.to(ours[name]) != ours[name].detach()).double().mean() <= MOST:
                return False
            seen = True
    return seen
