"""The comparison of a model with the weights that a small model was made from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fxprune._record import Record, checksum
from fxprune._record.repaired import Repair
from fxprune.capture.tensors import BUFFER, PARAMETER, Tensors

MOST = 0.5
"""A weight is another one if a larger share of its numbers is."""


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of batch norms that `recalibrate` and a repair measure again."""


def has_other_weights(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if no weight of a small model, as it was made, is a part of the model's weight of the same name.

    Nor may the statistics of its batch norms be other ones, all of them. known: the record of the small model. A small
    model that was trained has other weights than any original, so that nothing is known then.
    """
    as_made = bool(known.weights) and known.weights == checksum(small)
    return as_made and (_all_differ(model, small, known) or _all_statistics_differ(model, small, known))


def differs_beyond_repair(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if a small model was repaired, and no weight that its repair left is a part of the model's.

    It was trained since, or made from another model. known: the record of the small model.
    """
    return known.repair is not None and _all_differ(model, small, known)


def refitted(name: str, repair: Repair) -> bool:
    """True if a repair of this kind, or `recalibrate` after it, may have changed a tensor."""
    owner, _, own = name.rpartition(".")
    if own in STATISTICS:
        return True
    if repair.changed is not None:
        return name in repair.changed
    changed = {  # of an old file
        layer
        for layer, told in repair.layers.items()
        if repair.mode == "outputs" or (told.before != told.after and layer not in repair.undone)
    }
    return owner in {layer.rpartition(".")[0] for layer in changed}


def _all_differ(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if all weights that no repair has changed are other ones than the model's, and there is one."""
    tensors = Tensors.of(small)
    names = [name for name in tensors.names(PARAMETER) if tensors[name].ndim > 1]
    return _no_parts(model, tensors, names, known)


def _all_statistics_differ(model: nn.Module, small: nn.Module, known: Record) -> bool:
    """True if all running means and variances are other ones than the model's, and there is one."""
    tensors = Tensors.of(small)
    names = [name for name in tensors.names(BUFFER) if name.rpartition(".")[2] in ("running_mean", "running_var")]
    return known.steps == 1 and _no_parts(model, tensors, names, known)


def _no_parts(model: nn.Module, ours: Tensors, names: Iterable[str], known: Record) -> bool:
    """True if none of these tensors, but for those that a repair has changed, is a part of the model's."""
    theirs, kept = Tensors.of(model), known.plan.kept
    seen = False
    for name in names:
        if known.repair is not None and refitted(name, known.repair):
            continue
        if name in theirs and ours[name].numel():
            part = theirs[name].detach()
            for dim, indices in kept.get(name, {}).items():
                part = part.index_select(dim, torch.tensor(indices, device=part.device))
            if part.shape != ours[name].shape:
                continue
            if (part.to(ours[name]) != ours[name].detach()).double().mean() <= MOST:
                return False
            seen = True
    return seen
