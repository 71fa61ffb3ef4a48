"""The comparison of a model with the weights that a small model was made from."""

from __future__ import annotations

import torch
from torch import nn

from fxprune._record import Record, checksum
from fxprune._record.repaired import Repair
from fxprune.capture.tensors import PARAMETER, Tensors

MOST = 0.5
"""A weight is another one if a larger share of its numbers is."""


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of batch norms that `recalibrate` and a repair measure again."""


def has_other_weights(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if no weight of a small model, as it was made, is a part of the model's weight of the same name.

    known: the record of the small model. A small model that was trained has other weights than any original, so that
    nothing is known then.
    """
    return bool(known.weights) and known.weights == checksum(small) and _all_differ(model, small, known)


def differs_beyond_repair(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if a small model was repaired, and no weight that its repair left is a part of the model's.

    It was trained since, or made from another model. known: the record of the small model.
    """
    return known.repair is not None and _all_differ(model, small, known)


def refitted(name: str, repair: Repair) -> bool:
    """True if a repair of this kind, or `recalibrate` after it, may have changed a tensor."""
    owner, _, own = name.rpartition(".")
    changed = {
        layer
        for layer, told in repair.layers.items()
        if repair.mode == "outputs" or (told.before != told.after and layer not in repair.undone)
    }
    return own in STATISTICS or owner in {layer.rpartition(".")[0] for layer in changed}


def _all_differ(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if all weights that no repair has changed are other ones than the model's, and there is one."""
    ours, theirs, kept = Tensors.of(small), Tensors.of(model), known.plan.kept
    seen = False
    for name in ours.names(PARAMETER):
        if known.repair is not None and refitted(name, known.repair):
            continue
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
