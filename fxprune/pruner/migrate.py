"""Masks and plain copies of models that other pruners have masked: those of torch, torch.ao and this package."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from fxprune.arguments import checks_arguments
from fxprune.capture.tensors import computed_tensors
from fxprune.errors import ChannelsStayWarning, NothingRemovedWarning, PlanError, counted
from fxprune.ops.layers import output_dim
from fxprune.pruner.layers import LAYERS, bias_last, is_prepared, remove_parametrization, squash_layer, why_not_squash
from fxprune.pruner.parametrization import BIAS, FollowingParametrization, OutputsParametrization

TORCH_AO = "torch.ao.pruning._experimental.pruner.parametrization"
TORCH_AO_ELEMENTS = "torch.ao.pruning.sparsifier.utils"


@checks_arguments("model", "zeros")
def masks_of(model: nn.Module, *, zeros: bool = False) -> dict[str, Tensor]:
    """Returns {layer name: bool mask of its outputs, True = keep} of a model that one or several pruners have masked.

    It reads the masks of `fxprune.pruner`, of `torch.ao.pruning` (`FakeStructuredSparsity`, and `FakeSparsity` over
    single weights), and of `torch.nn.utils.prune` (`ln_structured`, `random_structured`, `custom_from_mask`, ...). An
    output counts as pruned if its whole row of the weight is masked. The result has every layer that has a mask.

    Args:
        model: only read.
        zeros: True also reads linear layers and convolutions without a mask, as `prune.remove` and `squash_mask` leave
            them: an output counts as pruned if its whole row of the weight is zero. The result then also has those of
            these layers that have such a row.

    Warns with `ChannelsStayWarning` of everything that it ignores: masked weights in rows that are not masked as a
    whole, masks of other parameters, and layers with every output masked. Warns with `NothingRemovedWarning` if no
    output is pruned.

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
            whole, single = _kept_outputs(module, elements)
            masks[name] = masks[name] & whole if name in masks else whole
            if single:
                ignored.append(f'"{name}": {single} masked weights in rows that are not masked as a whole')
        weight = module._parameters.get("weight")
        if zeros and name not in masks and isinstance(module, LAYERS) and weight is not None:
            whole, _ = _kept_outputs(module, weight.detach() != 0)
            if not whole.all():
                masks[name] = whole
    for name in [name for name, mask in masks.items() if not mask.any()]:
        ignored.append(f'"{name}": the masks of all its {len(masks.pop(name))} outputs, a layer cannot be empty')
    if ignored:
        text = f"masks_of ignores {'; '.join(ignored)}. Only whole rows make a layer smaller: mask those that should go"
        warnings.warn(text, ChannelsStayWarning, stacklevel=3)
    if all(bool(mask.all()) for mask in masks.values()):
        why = "no layer has a mask" if not masks else f"the masks of {counted(len(masks), 'layer')} keep every output"
        more = "" if zeros else "; rows of zeros without a mask are read with zeros=True"
        warnings.warn(
            f"no output of this model is pruned: {why}{more}",
            NothingRemovedWarning,
            stacklevel=3,
        )
    return masks


@checks_arguments("model")
def plain(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model that pruners have masked, with zeros in the weights instead of masks.

    The copy computes the same. It has none of the parametrizations and hooks of `fxprune.pruner` and
    `torch.ao.pruning`, and none of the masks of `torch.nn.utils.prune`. So `transform(plain(model), example_inputs,
    masks=masks_of(model))` removes the outputs that any of them has masked. This function takes a whole model;
    `fxprune.sparse.plain` takes one masked layer.

    >>> import torch
    >>> from torch.nn.utils import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> _ = prune.random_structured(net[0], "weight", 1, dim=0)
    >>> list(net.state_dict()), list(plain(net).state_dict())
    (['0.bias', '0.weight_orig', '0.weight_mask'], ['0.weight', '0.bias'])
    """
    made = _deep_copy(model)
    for name, module in made.named_modules():
        if is_prepared(module):
            why = why_not_squash(module)
            if why:
                raise PlanError(
                    f'"{name}" cannot be squashed', why=why, do="remove what was registered, or prepare the model again"
                )
    prepared = [m for m in made.modules() if is_prepared(m)]
    # batch norms first: they read the mask of their layer
    for module in sorted(prepared, key=lambda m: not isinstance(_weight_parametrization(m), FollowingParametrization)):
        squash_layer(module)
    for module in list(made.modules()):
        _squash_torch_ao(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, str(hook._tensor_name))  # type: ignore[no-untyped-call]
                bias_last(module)
    return made


def _deep_copy(model: nn.Module) -> nn.Module:
    """Returns a deep copy, also of a model with computed tensors in attributes, which `copy.deepcopy` refuses.

    `torch.nn.utils.prune` stores such tensors: the masked weights of the last forward.
    """
    return copy.deepcopy(model, {**computed_tensors(model)})


def _weight_parametrization(module: nn.Module) -> Any:
    found: Any = module.parametrizations
    return found["weight"][0]


def _masks_on(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (parameter, mask over its outputs or elements, True = keep) for every mask on a module's parameters."""
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for parameter, parametrizations in lists.items():
            for parametrization in parametrizations:
                ours = isinstance(parametrization, OutputsParametrization)
                follows = isinstance(parametrization, FollowingParametrization)
                if (ours and not follows) or _is_torch_ao(parametrization):
                    yield parameter, parametrization.mask.detach().bool()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            parameter = str(hook._tensor_name)
            yield parameter, module._buffers[parameter + "_mask"].detach().bool()  # type: ignore[union-attr]


def _kept_outputs(module: nn.Module, mask: Tensor) -> tuple[Tensor, int]:
    """Returns bool [outputs], True if any element is kept, and the number of masked elements in those outputs."""
    if mask.ndim < 2:
        return mask.clone(), 0
    dim = output_dim(module, mask.ndim)
    rows = mask.movedim(dim, 0).flatten(1)
    kept = rows.any(1)
    return kept, int((~rows[kept]).sum())


def _is_torch_ao(parametrization: nn.Module) -> bool:
    """True if this is a mask of torch.ao; False without a look if nothing has imported its module."""
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
            raise PlanError(
                "a weight has masks and other parametrizations",
                at=type(module).__name__,
                do="remove the other parametrization first, with torch.nn.utils.parametrize",
            )
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
