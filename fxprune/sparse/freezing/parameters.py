"""Freezing: parameters, single weights and running statistics that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from fxprune.errors import PlanError
from fxprune.names import checked, find_all, names_of
from fxprune.sparse.freezing.optimizer_hooks import guard, guard_elements, guarded, let_go

_EARLIER = "_fxprune_frozen"  # attribute of a module: own parameter -> its requires_grad before it was frozen
_HELD = "_fxprune_held"  # attribute of a norm layer: the handles of the hooks that keep it in evaluation mode
_MODE = "_fxprune_mode"  # attribute of such a layer while it runs: the mode that it will get back
_STATISTICS = (_NormBase, _SpectralNorm)  # the layers of torch that change their buffers in training mode


@dataclass(frozen=True)
class FreezeReport:
    """The parameters and norms that `freeze` stopped, or that `unfreeze` set free.

    parameters: whole parameters, by the first of their names. partial: parameter -> how many of its elements.
    norms: layers whose running statistics are meant. unchanged: parameters that were so already.
    """

    parameters: tuple[str, ...]
    partial: Mapping[str, int]
    norms: tuple[str, ...]
    unchanged: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            ("parameters", ", ".join(self.parameters)),
            ("elements of", ", ".join(f"{name} ({count})" for name, count in self.partial.items())),
            ("statistics of", ", ".join(self.norms)),
            ("already so", ", ".join(self.unchanged)),
        ]
        return "\n".join(f"{label}: {text}" for label, text in lines if text)


def freeze(
    model: nn.Module,
    patterns: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    norms: bool = True,
) -> FreezeReport:
    """Stop every update of the parameters that `patterns` mean, in place, until `unfreeze`.

    A whole parameter gets `requires_grad = False` and loses its `grad`: the optimizers of `torch.optim` skip a
    parameter whose `grad` is None, where one that is left over, even one of zeros, would go on moving the weight by
    momentum and weight decay. Optimizers that were made before are meant as well; what they remember of a parameter
    stays in their state.

    Args:
        model: changed in place; parameters keep their values and stay in `state_dict`.
        patterns: a pattern or several, see `fxprune.names`; a module stands for everything in it. Or {pattern: bool
            mask, True = frozen}, for single elements (the parameter's shape) or output channels (a mask of one
            dimension) of each parameter that the pattern names: their gradient becomes zero, and `optimizer` gives
            them back after each step the exact values that they had before it.
        optimizer: needed for masks. For whole parameters it is needed only where it moves what has no gradient:
            `torch.optim.LBFGS`, and optimizers that are not torch's.
        norms: norm layers that are named, or whose parameters are all frozen, use their running statistics and leave
            them as they are whenever they run, in whatever mode the model is (so do the vectors of spectral norms).
            Their `training` flag stays what it was.

    A deep copy is as frozen as its original, and can be unfrozen on its own; but not its masks, whose optimizer knows
    nothing of the copy. A `state_dict` says nothing of freezing, and loading one changes frozen weights.

    Raises `PlanError`, before anything is changed, for patterns that mean nothing and for masks that do not fit.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> print(freeze(net, ["0", nn.BatchNorm1d]))
    parameters: 0.weight, 0.bias, 1.weight, 1.bias
    statistics of: 1
    >>> [p.requires_grad for p in net.parameters()]
    [False, False, False, False, True, True]
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise PlanError(f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if isinstance(patterns, Mapping):
        return FreezeReport((), guard_elements(checked(model), patterns, optimizer), ())
    named, owners, layers = _meant(model, patterns, "freeze")
    if not named and not (norms and layers):
        why = "norms=False leaves running statistics alone" if layers else "it has no parameters and no statistics"
        raise PlanError("there is nothing to freeze in what is named", why=why)
    partly = [name for name, p in named.items() if not _is_frozen(p, owners) and guarded(p) is not None]
    if partly:
        raise PlanError(f'elements of "{partly[0]}" are frozen already', do="unfreeze them first")
    done = tuple(name for name, parameter in named.items() if not _is_frozen(parameter, owners))
    for parameter in named.values():
        for module, leaf in owners[id(parameter)]:
            module.__dict__.setdefault(_EARLIER, {}).setdefault(leaf, parameter.requires_grad)
    for parameter in named.values():
        parameter.requires_grad_(False)
        parameter.grad = None
        if optimizer is not None and _moves_without_gradient(optimizer, parameter) and guarded(parameter) is None:
            guard(parameter, None, optimizer)
    held: tuple[str, ...] = ()
    if norms:
        meant = {id(parameter) for parameter in named.values()}
        whole = {name: m for name, m in _norm_layers(model) if _all_frozen(m, owners, meant)}
        held = tuple(name for name, module in {**whole, **layers}.items() if _hold(module))
    return FreezeReport(done, {}, held, tuple(name for name in named if name not in done))


def unfreeze(model: nn.Module, patterns: Any = "*") -> FreezeReport:
    """Set free what `freeze` stopped, in place: each parameter gets the `requires_grad` that it had before.

    patterns: as those of `freeze`, of a dict its names; everything by default. A norm layer goes on with its
        statistics when it is named, or when one of its parameters is set free.

    Raises `PlanError` for patterns that mean nothing, and where nothing of what they mean is frozen.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> report = freeze(net, "*")
    >>> print(unfreeze(net, "1"))
    parameters: 1.weight, 1.bias
    """
    names = list(patterns) if isinstance(patterns, Mapping) else patterns
    named, owners, layers = _meant(model, names, "unfreeze")
    done: list[str] = []
    unchanged: list[str] = []
    partial: dict[str, int] = {}
    for name, parameter in named.items():
        elements = let_go(parameter)
        if _is_frozen(parameter, owners):
            parameter.requires_grad_(_forget(parameter, owners))
            done.append(name)
        elif elements is not None:
            partial[name] = elements.count
        else:
            unchanged.append(name)
    free = {id(named[name]) for name in done}
    touched = {n: m for n, m in _norm_layers(model) if any(id(p) in free for p in m.parameters())}
    norms = tuple(name for name, module in {**touched, **layers}.items() if _release(module))
    if not (done or partial or norms):
        listed = ", ".join(unchanged[:4]) + (", ..." if len(unchanged) > 4 else "")
        raise PlanError("nothing of what is named is frozen", at=listed, do="freeze it first")
    return FreezeReport(tuple(done), partial, norms, tuple(unchanged))


Owners = dict[int, list[tuple[nn.Module, str]]]


def _meant(model: nn.Module, patterns: Any, what: str) -> tuple[dict[str, nn.Parameter], Owners, dict[str, nn.Module]]:
    """The parameters meant, each by its first name; where every parameter stands; the norm layers that are meant."""
    names = names_of(model)
    matches = find_all(names, patterns, what=what)
    modules = [module for match in matches for module in match.modules.values()]
    wanted = {id(names.tensors[name]) for match in matches for name in match.tensors}
    wanted |= {id(parameter) for module in modules for parameter in module.parameters()}
    inside = {id(m) for module in modules for m in module.modules()}
    owners: Owners = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, leaf))
    named = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    return named, owners, {name: m for name, m in _norm_layers(model) if id(m) in inside}


def _norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have running statistics, or another estimate that training moves."""
    for name, module in model.named_modules():
        if isinstance(module, _STATISTICS) and next(module.buffers(recurse=False), None) is not None:
            yield name, module


def _is_frozen(parameter: nn.Parameter, owners: Owners) -> bool:
    return any(leaf in module.__dict__.get(_EARLIER, {}) for module, leaf in owners[id(parameter)])


def _forget(parameter: nn.Parameter, owners: Owners) -> bool:
    """True if the parameter required a gradient before it was frozen; the record of that is deleted."""
    earlier = [module.__dict__.get(_EARLIER, {}).pop(leaf, False) for module, leaf in owners[id(parameter)]]
    return any(earlier)


def _all_frozen(module: nn.Module, owners: Owners, meant: set[int]) -> bool:
    """True if all of a layer is frozen, some of it just now."""
    own = list(module.parameters(recurse=False))
    return any(id(p) in meant for p in own) and all(_is_frozen(p, owners) for p in own)


def _hold(module: nn.Module) -> bool:
    """Let a layer run in evaluation mode, whatever its flag says; False if it does so already.

    Hooks, because a flag would be lost at the next `model.train()`, and another `train` where code sets the flag
    itself. They survive deep copies and pickling, and `torch.compile` traces them.
    """
    if _HELD in module.__dict__:
        return False
    before = module.register_forward_pre_hook(_enter)
    after = module.register_forward_hook(_leave, always_call=True)
    module.__dict__[_HELD] = (before, after)
    return True


def _release(module: nn.Module) -> bool:
    handles = module.__dict__.pop(_HELD, None)
    for handle in handles or ():
        handle.remove()
    return handles is not None


def _enter(module: Any, args: Any) -> None:
    setattr(module, _MODE, module.training)
    module.training = False


def _leave(module: Any, args: Any, made: Any) -> None:
    module.training = getattr(module, _MODE)


def _moves_without_gradient(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """True if an optimizer may move a parameter whose grad is None; those of torch do not, but for LBFGS."""
    if isinstance(optimizer, torch.optim.LBFGS) or not type(optimizer).__module__.startswith("torch.optim."):
        return any(parameter is p for group in optimizer.param_groups for p in group["params"])
    return False
