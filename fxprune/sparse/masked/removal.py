"""Removal of the channels that masks have cut off, by `fxprune.transform`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fxprune._transform import transform
from fxprune.arguments import checks_arguments, checks_names
from fxprune.sparse.masked.convert import plain
from fxprune.sparse.masked.layers import Masked, is_masked


@checks_arguments("model")
def empty_outputs(model: nn.Module) -> dict[str, Tensor]:
    """Returns the masked layers with unconnected outputs: name -> bool [outputs], False = without any connection.

    `fxprune.transform` takes this dict as `masks`. An unconnected output is constant: its bias, or zero without a bias.

    >>> import torch
    >>> from fxprune.sparse import MaskedLinear
    >>> empty_outputs(nn.Sequential(MaskedLinear(2, 3, torch.tensor([[True, True], [False, False], [False, True]]))))
    {'0': tensor([ True, False,  True])}
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Masked):
            keep = layer.mask.flatten(1).any(1)
            if name and not keep.all():
                found[name] = keep
    return found


@checks_names
def shrink(model: nn.Module, example_inputs: Any, *, path: str | None = None, prefer: str | None = None) -> nn.Module:
    """Returns a smaller model that computes the same, without the channels that masks have cut off.

    It calls `transform(..., masks="zeros")`, which removes channels that no layer reads (empty columns), channels that
    no input reaches (empty rows; their bias is constant, and is folded into the next layer), and channels that only
    served those. Channels whose removal changes a statistic stay. A masked layer that has all its connections
    afterwards becomes an `nn.Linear` or `nn.Conv2d`.

    Args:
        model, example_inputs, path, prefer: as for `fxprune.transform`. The model is only read.

    Raises the errors of `transform`. Warns with `NothingRemovedWarning`, which says why, if no channel is removed.

    >>> import torch
    >>> from fxprune.sparse import MaskedLinear
    >>> mask = torch.tensor([[True, True], [True, False], [False, False]])
    >>> net = nn.Sequential(MaskedLinear(2, 3, mask), nn.Sigmoid(), MaskedLinear(3, 2, mask.T))
    >>> shrink(net.eval(), torch.randn(1, 2)).get_submodule("2")
    MaskedLinear(in_features=2, out_features=2, bias=True, connections=3/4)
    """
    small = transform(model, example_inputs, masks="zeros", path=path, prefer=prefer)
    made: dict[int, nn.Module] = {}
    for name, layer in list(small.named_modules(remove_duplicate=False)):
        if name and is_masked(layer) and not _hooked(layer) and bool(layer.get_buffer("mask").all()):
            small.set_submodule(name, made.setdefault(id(layer), plain(layer)))
    return small


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
