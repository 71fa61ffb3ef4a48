"""Conversions of masked layers: to layers of torch, and to and from the form of `torch.nn.utils.prune`."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import prune

from fxprune.arguments import checks_arguments, checks_names
from fxprune.errors import PlanError
from fxprune.sparse.masked.layers import MaskedConv2d, MaskedLinear, is_masked

MaskedLayer = MaskedLinear | MaskedConv2d
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@checks_arguments("model")
def plain(layer: MaskedLayer) -> nn.Linear | nn.Conv2d:
    """Returns a copy of a masked layer as `nn.Linear` or `nn.Conv2d`, with zeros where the mask is False.

    The copy has no mask, so training it changes these zeros. This function takes one layer; `fxprune.pruner.plain`
    takes a model that a pruner has masked.

    Raises `PlanError` for any other layer.

    >>> import torch
    >>> plain(MaskedLinear(2, 1, torch.tensor([[True, False]]))).weight[0, 1].item()
    0.0
    """
    if not is_masked(layer):
        raise PlanError(
            "not a masked layer",
            at=f"to_prune({type(layer).__name__})",
            why=f"it is {type(layer).__name__}",
            do="pass a MaskedLinear or MaskedConv2d",
        )
    if "weight" not in layer._parameters:
        raise PlanError(
            "the weight of the layer is no parameter",
            at=type(layer).__name__,
            why="it is computed from other parameters",
            do="remove its parametrization or pruning first",
        )
    made: nn.Linear | nn.Conv2d
    bias = layer.bias is not None
    if isinstance(layer, MaskedConv2d):
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        made = nn.Conv2d(*sizes, layer.dilation, layer.groups, bias, layer.padding_mode, device="meta")  # type: ignore[arg-type]
    else:
        made = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")
    for name, old in layer.named_parameters(recurse=False):
        values = layer.weight if name == "weight" else old
        setattr(made, name, nn.Parameter(values.detach().clone(), requires_grad=old.requires_grad))
    return made.train(layer.training)


@checks_names
def to_prune(layer: MaskedLayer) -> nn.Linear | nn.Conv2d:
    """Returns a copy that `torch.nn.utils.prune` masks: with `weight_orig`, the buffer `weight_mask`, and a hook.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.prune.custom_from_mask.html

    >>> import torch
    >>> made = to_prune(MaskedLinear(2, 1, torch.tensor([[True, False]])))
    >>> sorted(dict(made.named_parameters())), made.weight_mask
    (['bias', 'weight_orig'], tensor([[1., 0.]]))
    """
    made = plain(layer)
    mask = layer.mask.expand(made.weight.shape)
    return prune.custom_from_mask(made, "weight", mask)  # type: ignore[no-any-return, no-untyped-call]


@checks_names
def from_prune(layer: nn.Module) -> MaskedLayer:
    """Returns a masked layer for an `nn.Linear` or `nn.Conv2d` that `torch.nn.utils.prune` masks; only reads it.

    Raises `PlanError` if the weight is not pruned, or if the mask has other numbers than 0 and 1.

    >>> from torch.nn.utils import prune
    >>> from_prune(prune.l1_unstructured(nn.Linear(4, 2), "weight", amount=5)).connections
    3
    """
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise PlanError(
            "not a layer that has a masked counterpart",
            at=f"from_prune({type(layer).__name__})",
            why=f"it is {type(layer).__name__}",
            do="pass an nn.Linear or nn.Conv2d under torch.nn.utils.prune",
        )
    original, given = layer._parameters.get("weight_orig"), layer._buffers.get("weight_mask")
    if original is None or given is None:
        raise PlanError(
            "the weight of the layer is not pruned",
            at=type(layer).__name__,
            why="it has no weight_orig and weight_mask",
            do="use MaskedLinear.from_linear or MaskedConv2d.from_conv, or prune it first",
        )
    if "bias_orig" in layer._parameters:
        raise PlanError(
            "the bias is pruned too",
            at=f"{type(layer).__name__}.bias",
            why="a masked layer has a mask of the weight alone",
            do='call torch.nn.utils.prune.remove(layer, "bias") first',
        )
    mask = given != 0
    if not ((given == 1) == mask).all():
        raise PlanError(
            "the mask has other numbers than 0 and 1",
            at=f"{type(layer).__name__}.weight_mask",
            why="some weights are multiplied by another number",
            do="a masked layer connects or does not",
        )
    bare = _without_hooks(layer, original)
    if isinstance(bare, nn.Conv2d):
        return MaskedConv2d.from_conv(bare, mask)
    return MaskedLinear.from_linear(bare, mask)


def _without_hooks(layer: Any, weight: Tensor) -> Any:
    """Returns the layer with the same settings and this weight, without hooks and buffers."""
    bare = object.__new__(type(layer))
    nn.Module.__init__(bare)
    kept = {k: v for k, v in layer.__dict__.items() if k not in bare.__dict__ and not isinstance(v, Tensor)}
    bare.__dict__.update(kept)
    bare.training = layer.training
    bare._parameters.update(weight=weight, bias=layer.bias)
    return bare
