"""Training and evaluation mode: which modules read it, and the inputs that a forward in training needs."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fxprune.capture.code import content_of, functions_of, is_torch, names_in
from fxprune.capture.fake_operations import run
from fxprune.capture.inputs import Inputs
from fxprune.errors import CaptureError, text_of

MODES = {True: "training", False: "evaluation"}
"""Value of `nn.Module.training` -> the name of that mode."""


class RunMode(NamedTuple):
    """The mode of a run, and if gradients are recorded in it, as in a step of training."""

    training: bool
    gradients: bool = False

    def text(self, given: bool) -> str:
        """The words for what is other than in a run without gradients in the mode `given`.

        >>> RunMode(True, True).text(False), RunMode(True).text(True)
        ('in training mode with gradients', '')
        """
        mode = f"in {MODES[self.training]} mode" if self.training != given else ""
        return f"{mode} with gradients".lstrip() if self.gradients else mode


def reads_training(module: nn.Module) -> bool:
    """True if code of the module's class, of its base classes or of its hooks names `training`, except code of torch.

    Functions that this code calls by a global name count too. So the answer can be True for a module that never reads
    its mode; it is False only for one whose forward cannot.

    >>> reads_training(nn.Dropout()), reads_training(nn.Sequential(nn.BatchNorm2d(8)))
    (False, False)
    """
    return any("training" in names_in(code) for code in _code_of(module))


_OWN_WAYS = {"train", "eval", "training", "children", "named_children", "__setattr__", "__getattribute__"}
"""Names of a class by which it may learn of its mode, or tell it, without a read of the attribute of `nn.Module`."""

_TELLING = ("train", "children", "named_children")
"""The methods of `nn.Module` by which the mode is set."""

_AROUND_ATTRIBUTES = {"vars", "__dict__", "exec", "eval"}
"""Names by which code may read an attribute so that no property of a class sees it."""


def tells_modes_by_reading(model: nn.Module) -> bool:
    """True if code of the model can tell the modes apart by reads alone, which `watched_reads` sees.

    Classes with names of `_OWN_WAYS` may do it in another way, and so may code that names `training` and one of
    `_AROUND_ATTRIBUTES`.

    >>> tells_modes_by_reading(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    True
    """
    modules = list(model.modules())
    if any(_OWN_WAYS & vars(base).keys() for kind in set(map(type, modules)) for base in _classes(kind)):
        return False
    if any(name in vars(module) for module in modules for name in _OWN_WAYS - {"training"}):
        return False
    if not modules_reading_training(model):
        return True
    plain = {type(module): module for module in modules if not _is_changed(module)}
    changed = [module for module in modules if _is_changed(module)]
    codes = (code for module in (*plain.values(), *changed) for code in _code_of(module))
    return all(_AROUND_ATTRIBUTES.isdisjoint(names_in(code)) for code in codes)


def modules_reading_training(model: nn.Module) -> list[str]:
    """The paths of the modules that read their mode: see `reads_training`. One of each class is enough to know."""
    classes: dict[type, bool] = {}
    found = []
    for path, module in model.named_modules():
        plain = not _is_changed(module)
        reads = classes.get(type(module)) if plain else None
        if reads is None:
            reads = reads_training(module)
        if plain:
            classes[type(module)] = reads
        if reads:
            found.append(path)
    return found


def set_mode(module: nn.Module, training: bool) -> None:
    """Set the mode of a module as its own `train` does it. Raises `CaptureError` if that raises."""
    try:
        module.train(training)
    except Exception as error:
        raise CaptureError(
            f"{type(module).__name__}.train({training}) raises",
            raised=True,
            why=text_of(error),
            do="check that the model can be set to that mode",
        ) from error


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Sets the mode of a copy as its own `train` does it, see `set_mode`.

    Such a method may write into weights, as one that merges adapters does. Parameters that are shared with the model
    have their numbers back at the end.
    """
    real = [p for p in module.parameters() if not isinstance(p, FakeTensor)] if has_own_train(module) else []
    before = [(p, p.data, p.detach().clone()) for p in real]
    try:
        set_mode(module, training)
        yield
    finally:
        for parameter, data, numbers in before:
            parameter.data = data
            if not torch.equal(data, numbers):
                data.copy_(numbers)


def has_own_train(module: nn.Module) -> bool:
    """True if setting the mode of a module may do more than to set `training` in each module inside.

    >>> has_own_train(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    False
    """
    usual: Any = nn.Module
    return any(
        "train" in vars(part) or any(getattr(type(part), name) is not getattr(usual, name) for name in _TELLING)
        for part in module.modules()
    )


def doubled(inputs: Inputs) -> Inputs:
    """The inputs with every example twice: tensors whose dimension 0 is the batch are concatenated with themselves.

    The batch is the size of dimension 0 of the first tensor. Fractions are halved the second time: a norm of two equal
    examples would give nothing but roundings.

    >>> [tuple(t.shape) for t in doubled(((torch.zeros(1, 3), torch.zeros(4)), {}))[0]]
    [(2, 3), (4,)]
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    if not tensors:
        return inputs
    batch = tensors[0].shape[0]

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or tensor.shape[0] != batch:
            return tensor
        return torch.cat([tensor, tensor / 2 if tensor.is_floating_point() else tensor])

    made: Inputs = pytree.tree_map_only(torch.Tensor, twice, inputs)
    return made


class RandomDecisions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in which a random tensor with one number is the constant 0.5, also on fake tensors.

    So a forward can decide by it, as in `if torch.rand([]) < self.layerdrop`, and decides the same in every run. Enter
    it below the modes that watch operations.
    """

    NAMES = frozenset({"aten::rand", "aten::rand_like", "aten::uniform"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        if func._schema.name not in self.NAMES or made.numel() != 1:
            return made
        with _disable_current_modes():
            number = torch.full(made.shape, 0.5, dtype=made.dtype, device=made.device)
            if not isinstance(made, FakeTensor):
                return number
            mode = made.fake_mode
            return mode.fake_tensor_converter.from_real_tensor(mode, number, make_constant=True)


def random_decisions() -> contextlib.AbstractContextManager[Any]:
    """A new `RandomDecisions`."""
    return RandomDecisions()  # type: ignore[no-untyped-call]


def _is_changed(module: nn.Module) -> bool:
    """True if the code that a module runs may be another one than that of its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _classes(kind: type) -> Iterator[type]:
    """A class and its base classes, except those of torch, of this package and of Python.

    The layers of this package learn from a batch in training mode, as batch norm does, and compute the same otherwise.
    """
    for base in kind.__mro__:
        if base is not object and not is_torch(base.__module__) and not base.__module__.startswith("fxprune."):
            yield base


def _code_of(module: nn.Module) -> Iterator[types.CodeType]:
    """The code of a module's class, of its base classes and of its hooks, and of the functions that they call."""
    seen: set[types.CodeType] = set()
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    own = (value for value in module.__dict__.values() if callable(value) and not isinstance(value, nn.Module))
    methods = (value for base in _classes(type(module)) for value in vars(base).values())
    for value in (*methods, *own, *hooks):
        yield from _called_code(value, seen)


def _called_code(value: Any, seen: set[types.CodeType]) -> Iterator[types.CodeType]:
    """The code of a function or descriptor, and of the functions that it calls, except code of torch.

    seen: the code that was looked at before; it is extended.
    """
    for function in functions_of(value):
        code = function.__code__
        if code in seen or is_torch(function.__module__):
            continue
        seen.add(code)
        yield code
        called = [function.__globals__.get(name) for name in set(names_in(code))]
        closed = [content_of(cell) for cell in function.__closure__ or ()]
        for other in (*called, *closed):
            yield from _called_code(other, seen)
