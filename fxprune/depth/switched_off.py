"""The parameters whose zeros let branches add nothing, in a model that still has these branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from fxprune.depth.dropped import GIVES, ZEROS, Dropped, Replacement
from fxprune.errors import PlanError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
_NO_OPERATIONS = (nn.Identity, nn.Dropout, nn.ModuleList)


def switched_off(model: nn.Module, dropped: Sequence[Dropped]) -> dict[str, nn.Parameter]:
    """The parameters of dropped branches, by name: with zeros in all of them the branches add zeros.

    model: the original. Raises `PlanError` where the modules do not say that zeros in parameters give zeros, and where
    a parameter is also one of a module that stays.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    gone = {name: named[name] for one in dropped for name in one.tensors if name in named}
    elsewhere = {id(parameter): name for name, parameter in named.items() if name not in gone}
    for one in dropped:
        if one.is_layer:
            raise _refused(one, "it is a whole layer, whose norms give no zeros")
        shared = next((name for name in one.tensors if name in gone and id(gone[name]) in elsewhere), None)
        if shared is not None:
            raise _refused(one, f'"{shared}" is also "{elsewhere[id(gone[shared])]}", which stays')
        for replacement in one.replaced:
            why = next(_doubts(model, replacement), "")
            if why:
                raise _refused(one, why)
    return gone


def _refused(one: Dropped, why: str) -> PlanError:
    return PlanError(
        "the dropped branch cannot be switched off by zeros in the large model",
        at=f'"{one.name}", added in {one.at}',
        why=why,
        do='take others="keep", or put the small model where the large one is needed',
    )


def _doubts(model: nn.Module, replacement: Replacement) -> Iterator[str]:
    """Why the modules behind a replacement might not give zeros.

    Only the results of some modules of a branch are read outside of it. A replacement by zeros names such a module. A
    block that is replaced whole does not tell which modules in it are these, so all of them must give zeros.
    """
    module, path = model.get_submodule(replacement.path), replacement.path
    if type(module) is nn.MultiheadAttention and replacement.form == (0, None) and not module._forward_hooks:
        return  # its weights, which zeros do not make zero, are not read
    if replacement.kind in (ZEROS, GIVES):
        yield from _not_zero(module, path)
    elif _of_torch(module):  # such as an encoder layer, whose own parts give zeros
        for name, inner in module.named_modules(prefix=path):
            if inner._forward_hooks:
                yield f'"{name}" has forward hooks'
            if not _of_torch(inner):
                yield f'"{name}" is a {type(inner).__name__}, which is no module of torch'
    else:
        stay = [f"{path}.{child}" for child in replacement.children]
        for name, inner in module.named_modules(prefix=path):
            if inner is not module and not any(name == one or name.startswith(f"{one}.") for one in stay):
                yield from _not_zero(inner, name)


def _not_zero(module: nn.Module, path: str) -> Iterator[str]:
    """Why a module might not give zeros where its parameters are zero."""
    kind = type(module)
    if module._forward_hooks:
        yield f'"{path}" has forward hooks'
    elif kind is nn.Sequential:
        last = list(module.named_children())[-1:]
        for name, child in last:
            yield from _not_zero(child, f"{path}.{name}")
    elif kind in _NORMS and module.weight is None:
        yield f'"{path}" is a {kind.__name__} without a weight'
    elif kind not in (*_LAYERS, *_NORMS, *_NO_OPERATIONS):
        yield f'"{path}" is a {kind.__name__}, which is not known to give zeros where all its parameters are zero'


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")
