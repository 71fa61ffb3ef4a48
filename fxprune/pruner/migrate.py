"""Masks and plain models from what pruners left in a model: those of torch, of torch.ao, and of this package."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from fxprune.errors import ChannelsStayWarning, NothingRemovedWarning, PlanError
from fxprune.ops.layers import output_dim
from fxprune.pruner.layers import LAYERS, bias_last, is_prepared, remove_parametrization, squash_layer, why_not_squash
from fxprune.pruner.parametrization import BIAS, FollowingParametrization, OutputsParametrization

TORCH_AO = "torch.ao.pruning._experimental.pruner.parametrization"
TORCH_AO_ELEMENTS = "torch.ao.pruning.sparsifier.utils"


def masks_of(model: nn.Module, *, zeros: bool = False) -> dict[str, Tensor]:
    """Layer name -> bool mask of its outputs, True = keep, from whatever pruner has masked them.

    Read are the masks of `fxprune.pruner`, of `torch.ao.pruning` (`FakeStructuredSparsity`, and `FakeSparsity` over
    single weights), and of `torch.nn.utils.prune` (`ln_structured`, `random_structured`, `custom_from_mask`, ...).
    An output counts as pruned where its whole row of the weight is masked. Layers without a pruned output are in the
    result only if they have a mask.

    Args:
        model: only read.
        zeros: also read layers without any mask, such as `prune.remove` and `squash_mask` leave behind: an output of
            `nn.Linear` or a convolution is pruned where its whole row of the weight is zero.

    Warns with `ChannelsStayWarning` what it ignores (masked weights in rows that are not masked as a whole, masks of
    other parameters, layers with every output masked), and with `NothingRemovedWarning` if no output is pruned.

    >>> import torch
    >>> from torch.nn.utils import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     net[0].weight[1] = 0
    >>> _ = prune.ln_structured(net[0], "weight", 1, n=2, dim=0)
    >>> masks_of(net)
    {'0': tensor([ True, False,  True])}
    """
    masks: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, module in model.named_modules():
        for parameter, elements in _masks_on(module):
            if parameter != "weight":
                ignored.append(f'"{name}": the mask of {parameter}')
                continue
            whole, single = _whole_rows(module, elements)
            masks[name] = masks[name] & whole if name in masks else whole
            if single:
                ignored.append(f'"{name}": {single} masked weights in rows that are not masked as a whole')
        weight = module._parameters.get("weight")
        if zeros and name not in masks and isinstance(module, LAYERS) and weight is not None:
            whole, _ = _whole_rows(module, weight.detach() != 0)
            if not whole.all():
                masks[name] = whole
    for name in [name for name, mask in masks.items() if not mask.any()]:
        ignored.append(f'"{name}": the masks of all its {len(masks.pop(name))} outputs, a layer cannot be empty')
    if ignored:
        warnings.warn("masks_of ignores " + "; ".join(ignored), ChannelsStayWarning, stacklevel=2)
    if all(bool(mask.all()) for mask in masks.values()):
        why = "no layer has a mask" if not masks else f"the masks of {len(masks)} layers keep every output"
        more = "" if zeros else "; rows of zeros without a mask are read with zeros=True"
        warnings.warn(f"no output of this model is pruned: {why}{more}", NothingRemovedWarning, stacklevel=2)
    return masks


def plain(model: nn.Module) -> nn.Module:
    """A deep copy of a model that a pruner has masked: zeros in the weights, no masks, parametrizations and hooks.

    This is the `plain` of whole models; that of one masked layer is `fxprune.sparse.plain`. The function of the copy is
    that of the model. Taken off are the parametrizations and hooks of `fxprune.pruner` and `torch.ao.pruning`, and the
    masks of `torch.nn.utils.prune`. So `transform(plain(model), example_inputs, masks=masks_of(model))` removes the
    outputs that any of them has masked.

    >>> import torch
    >>> from torch.nn.utils import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> _ = prune.random_structured(net[0], "weight", 1, dim=0)
    >>> list(net.state_dict()), list(plain(net).state_dict())
    (['0.bias', '0.weight_orig', '0.weight_mask'], ['0.weight', '0.bias'])
    """
    made = _copied(model)
    for name, module in made.named_modules():
        if is_prepared(module):
            why = why_not_squash(module)
            if why:
                raise PlanError(f'"{name}" cannot be squashed', why=why)
    prepared = [m for m in made.modules() if is_prepared(m)]
    # those that follow first: they read the mask of the layer that they follow
    for module in sorted(prepared, key=lambda m: not isinstance(_first(m), FollowingParametrization)):
        squash_layer(module)
    for module in list(made.modules()):
        _squash_torch_ao(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, str(hook._tensor_name))  # type: ignore[no-untyped-call]
                bias_last(module)
    return made


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of models with tensors in attributes that are results of a computation.

    Such are the weights of `torch.nn.utils.prune` after a forward, which `copy.deepcopy` refuses.
    """
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _first(module: nn.Module) -> Any:
    found: Any = module.parametrizations
    return found["weight"][0]


def _masks_on(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(parameter, its mask over outputs or elements, True = keep) of everything that masks a module's parameters."""
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for parameter, parametrizations in lists.items():
            for parametrization in parametrizations:
                if isinstance(parametrization, OutputsParametrization) or _is_torch_ao(parametrization):
                    yield parameter, parametrization.mask.detach().bool()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            parameter = str(hook._tensor_name)
            yield parameter, module._buffers[parameter + "_mask"].detach().bool()  # type: ignore[union-attr]


def _whole_rows(module: nn.Module, mask: Tensor) -> tuple[Tensor, int]:
    """The outputs [outputs] of which anything is kept, and how many elements are masked in those."""
    if mask.ndim < 2:
        return mask.clone(), 0
    dim = output_dim(module, mask.ndim)
    rows = mask.movedim(dim, 0).flatten(1)
    kept = rows.any(1)
    return kept, int((~rows[kept]).sum())


def _is_torch_ao(parametrization: nn.Module) -> bool:
    """True if it masks as torch.ao does. Where its module was never imported, it cannot."""
    rows, elements = sys.modules.get(TORCH_AO), sys.modules.get(TORCH_AO_ELEMENTS)
    return (rows is not None and isinstance(parametrization, rows.FakeStructuredSparsity)) or (
        elements is not None and isinstance(parametrization, elements.FakeSparsity)
    )


def _squash_torch_ao(module: nn.Module) -> None:
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    for parameter, parametrizations in list(lists.items()):
        if not any(_is_torch_ao(p) for p in parametrizations):
            continue
        if not all(_is_torch_ao(p) for p in parametrizations):
            raise PlanError("a weight has masks and other parametrizations", at=type(module).__name__)
        original = parametrizations.original
        with torch.no_grad():
            original.copy_(parametrizations())
        mask = parametrizations[0].mask
        remove_parametrization(module, parameter)
        hooks: Any = sys.modules[TORCH_AO].BiasHook if TORCH_AO in sys.modules else ()
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, hooks):
                del module._forward_hooks[key]
                bias = module._parameters.pop(BIAS, None)
                if bias is not None:
                    if hook.prune_bias:
                        bias.data[~mask] = 0
                    module._parameters["bias"] = bias
        bias_last(module)
