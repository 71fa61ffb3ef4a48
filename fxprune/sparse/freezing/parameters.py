"""`freeze` and `unfreeze`: parameters, single elements and running statistics that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from fxprune.arguments import checks_names, shown
from fxprune.errors import PlanError
from fxprune.names import checked, find_all, names_of
from fxprune.sparse.freezing.optimizer_hooks import guard, guard_elements, guard_of, remove_guard

_EARLIER = "_fxprune_frozen"  # attribute of a module: own parameter -> its requires_grad before it was frozen
_HELD = "_fxprune_held"  # attribute of a norm layer: the handles of the hooks that keep it in evaluation mode
_MODE = "_fxprune_mode"  # attribute of such a layer while it runs: its mode before the call
_STATISTICS = (_NormBase, _SpectralNorm)  # the layers of torch that change their buffers in training mode


@dataclass(frozen=True)
class FreezeReport:
    """The parameters and norm layers that a call of `freeze` or `unfreeze` changed.

    parameters: names of whole parameters; a shared one by its first name. partial: parameter -> number of its elements.
    norms: layers whose running statistics were frozen or unfrozen. unchanged: parameters that were in the wanted state
    before the call.
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


@checks_names
def freeze(
    model: nn.Module,
    patterns: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    norms: bool = True,
) -> FreezeReport:
    """Stops every update of the parameters that `patterns` name, in place, until `unfreeze`.

    A whole parameter gets `requires_grad = False`, and its `grad` becomes None, because the optimizers of `torch.optim`
    skip a parameter without `grad`. With a `grad` left over, even one of zeros, momentum and weight decay would still
    change the weight. This also works for optimizers made before the call; they keep their state of the parameter.

    Args:
        model: changed in place; parameters keep their values and stay in `state_dict`.
        patterns: a pattern or several, see `fxprune.names`; a module stands for everything in it. Or a dict {pattern:
            bool mask, True = frozen} for parts of the parameters that the pattern names: single elements (a mask of
            the parameter's shape) or output channels (a mask of one dimension). Their gradient becomes zero, and a
            hook gives them back their old values after each step of `optimizer`.
        optimizer: needed for masks. For whole parameters it is needed only if it also moves parameters without a
            gradient: `torch.optim.LBFGS`, and optimizers that are not torch's.
        norms: True also freezes the running statistics of norm layers that are named, or whose parameters are all
            frozen. They then run as in evaluation mode, whatever mode the model is in; their `training` flag stays.
            The vectors of spectral norms are frozen in the same way.

    A deep copy is as frozen as its original, and can be unfrozen on its own. Masks are not copied, because the
    optimizer does not update the copy. A `state_dict` does not store what is frozen, and loading one changes frozen
    weights.

    Raises `PlanError`, before anything is changed, for patterns that match nothing and for masks that do not fit.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> print(freeze(net, ["0", nn.BatchNorm1d]))
    parameters: 0.weight, 0.bias, 1.weight, 1.bias
    statistics of: 1
    >>> [p.requires_grad for p in net.parameters()]
    [False, False, False, False, True, True]
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise PlanError(
            f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}",
            at=f"freeze(optimizer={type(optimizer).__name__})",
            why="its steps are told to leave the frozen elements as they are",
            do="pass the optimizer that trains the model",
        )
    if isinstance(patterns, Mapping):
        return FreezeReport((), guard_elements(checked(model), patterns, optimizer), ())
    named, owners, layers = _named(model, patterns, "freeze")
    if not named and not (norms and layers):
        why = "norms=False leaves running statistics alone" if layers else "it has no parameters and no statistics"
        raise PlanError(
            "there is nothing to freeze in what is named",
            at=f"freeze({shown(patterns)})",
            why=why,
            do="name layers with parameters, or pass norms=True",
        )
    partly = [name for name, p in named.items() if not _is_frozen(p, owners) and guard_of(p) is not None]
    if partly:
        raise PlanError(
            f'elements of "{partly[0]}" are frozen already',
            at=f'"{partly[0]}"',
            why="a mask has frozen a part of it",
            do="unfreeze them first",
        )
    done = tuple(name for name, parameter in named.items() if not _is_frozen(parameter, owners))
    for parameter in named.values():
        for module, leaf in owners[id(parameter)]:
            module.__dict__.setdefault(_EARLIER, {}).setdefault(leaf, parameter.requires_grad)
    for parameter in named.values():
        parameter.requires_grad_(False)
        parameter.grad = None
        if optimizer is not None and _moves_without_gradient(optimizer, parameter) and guard_of(parameter) is None:
            guard(parameter, None, optimizer)
    held: tuple[str, ...] = ()
    if norms:
        meant = {id(parameter) for parameter in named.values()}
        whole = {name: m for name, m in _norm_layers(model) if _all_frozen(m, owners, meant)}
        held = tuple(name for name, module in {**whole, **layers}.items() if _keep_in_eval(module))
    return FreezeReport(done, {}, held, tuple(name for name in named if name not in done))


@checks_names
def unfreeze(model: nn.Module, patterns: Any = "*") -> FreezeReport:
    """Undoes `freeze`, in place: each parameter gets the `requires_grad` that it had before.

    patterns: as for `freeze`; everything by default. A dict of masks may be passed too; only its patterns are used. A
        norm layer updates its statistics again if it is named, or if one of its parameters is unfrozen.

    Raises `PlanError` for patterns that match nothing, and if no named parameter or norm layer is frozen.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> report = freeze(net, "*")
    >>> print(unfreeze(net, "1"))
    parameters: 1.weight, 1.bias
    """
    names = list(patterns) if isinstance(patterns, Mapping) else patterns
    named, owners, layers = _named(model, names, "unfreeze")
    done: list[str] = []
    unchanged: list[str] = []
    partial: dict[str, int] = {}
    for name, parameter in named.items():
        elements = remove_guard(parameter)
        if _is_frozen(parameter, owners):
            parameter.requires_grad_(_pop_earlier(parameter, owners))
            done.append(name)
        elif elements is not None:
            partial[name] = elements.count
        else:
            unchanged.append(name)
    free = {id(named[name]) for name in done}
    touched = {n: m for n, m in _norm_layers(model) if any(id(p) in free for p in m.parameters())}
    norms = tuple(name for name, module in {**touched, **layers}.items() if _stop_keeping_in_eval(module))
    if not (done or partial or norms):
        listed = ", ".join(unchanged[:4]) + (", ..." if len(unchanged) > 4 else "")
        raise PlanError(
            "nothing of what is named is frozen",
            at=listed,
            why="its parameters and statistics are updated by training",
            do="freeze it first",
        )
    return FreezeReport(tuple(done), partial, norms, tuple(unchanged))


Owners = dict[int, list[tuple[nn.Module, str]]]


def _named(model: nn.Module, patterns: Any, what: str) -> tuple[dict[str, nn.Parameter], Owners, dict[str, nn.Module]]:
    """Returns the named parameters by first name, the (module, attribute) places of all, and the named norm layers."""
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
    """Yields the layers with running statistics or similar buffers, which change in training mode."""
    for name, module in model.named_modules():
        if isinstance(module, _STATISTICS) and next(module.buffers(recurse=False), None) is not None:
            yield name, module


def _is_frozen(parameter: nn.Parameter, owners: Owners) -> bool:
    return any(leaf in module.__dict__.get(_EARLIER, {}) for module, leaf in owners[id(parameter)])


def _pop_earlier(parameter: nn.Parameter, owners: Owners) -> bool:
    """Deletes the note of a frozen parameter; returns whether it required a gradient before it was frozen."""
    earlier = [module.__dict__.get(_EARLIER, {}).pop(leaf, False) for module, leaf in owners[id(parameter)]]
    return any(earlier)


def _all_frozen(module: nn.Module, owners: Owners, meant: set[int]) -> bool:
    """True if all parameters of a layer are frozen, at least one of them by this call (`meant`: their ids)."""
    own = list(module.parameters(recurse=False))
    return any(id(p) in meant for p in own) and all(_is_frozen(p, owners) for p in own)


def _keep_in_eval(module: nn.Module) -> bool:
    """Makes a layer run in evaluation mode whatever its `training` flag says; returns False if it does so already.

    Hooks do this, because the next `model.train()` would overwrite the flag, and an overridden `train` would miss code
    that sets the flag directly. Hooks survive deep copies and pickling, and `torch.compile` traces them.
    """
    if _HELD in module.__dict__:
        return False
    before = module.register_forward_pre_hook(_enter)
    after = module.register_forward_hook(_leave, always_call=True)
    module.__dict__[_HELD] = (before, after)
    return True


def _stop_keeping_in_eval(module: nn.Module) -> bool:
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
    """True if an optimizer may change a parameter whose grad is None: `LBFGS`, and any that is not torch's."""
    if isinstance(optimizer, torch.optim.LBFGS) or not type(optimizer).__module__.startswith("torch.optim."):
        return any(parameter is p for group in optimizer.param_groups for p in group["params"])
    return False
