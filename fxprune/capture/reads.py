"""Watching a run for what its code asks: the mode of a module, and if gradients are recorded.

`watched_reads` replaces a few attributes of torch for all threads, while the lock of `process_state` is held:

| question | what is replaced |
| --- | --- |
| `module.training`, also by `getattr`, `match` and the like | `nn.Module.training`, by a property |
| `vars(module)["training"]`, `module.__dict__`, copies of these | `__dict__` of modules that are not torch's |
| `torch.is_grad_enabled()`, `torch.is_inference_mode_enabled()` | these functions, in torch and in files of the model |
| `tensor.requires_grad`, `is_leaf`, `grad_fn`, `is_inference()` | these members of `torch.Tensor` |

A question by code of torch does not count: its layers compute the same without gradients, and drop no channels.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.capture.code import is_torch
from fxprune.capture.process_state import lock
from fxprune.capture.trace_watch import replace_attribute

_FLAGS = ("requires_grad", "is_leaf", "grad_fn")
"""The attributes of a tensor that tell if gradients are recorded."""

_GRADIENTS: Any = torch.is_grad_enabled
_INFERENCE: Any = torch.is_inference_mode_enabled


@dataclass(eq=False)
class Reads:
    """The questions that code has asked.

    modes: the paths of the modules whose mode was read; "" also for one that the model does not have.
    gradients: True if code has asked if gradients are recorded.
    inference: True if code has asked for `torch.inference_mode`.
    """

    modes: set[str] = field(default_factory=set)
    gradients: bool = False
    inference: bool = False


@contextlib.contextmanager
def watched_reads(
    module: nn.Module, reads: Reads, files: Iterable[types.ModuleType], *, torchs: bool
) -> Iterator[None]:
    """Add to `reads` what code asks, in any thread.

    Args:
        module: the module that runs. Its submodules get back the `__dict__` that they had.
        files: the files of the model, which may have the functions of torch under names of their own.
        torchs: True if a read of the mode by code of torch counts too, since forward may decide by what it computes.
    """
    asked = _Asked(reads, torchs, {id(part): path for path, part in module.named_modules()})
    with lock(), contextlib.ExitStack() as stack:
        replace_attribute(stack, nn.Module, "training", property(asked.training, _set_training, _delete_training))
        for part in module.modules():
            if part is module or not is_torch(type(part).__module__):
                _note_attributes(stack, part, asked)
        for name in _FLAGS:
            member: Any = getattr(torch._C.TensorBase, name)
            replace_attribute(stack, torch.Tensor, name, property(asked.flag(member), member.__set__))
        replace_attribute(stack, torch.Tensor, "is_inference", asked.is_inference)
        functions = {id(_GRADIENTS): asked.grad_enabled, id(_INFERENCE): asked.inference_enabled}
        for owner in (torch, *files):
            if not functions.keys().isdisjoint(map(id, vars(owner).values())):
                for name in [name for name, value in vars(owner).items() if id(value) in functions]:
                    replace_attribute(stack, owner, name, functions[id(vars(owner)[name])])
        yield


class _Asked:
    """The functions that answer a question, and note it unless code of torch or of this package has asked."""

    def __init__(self, reads: Reads, torchs: bool, paths: dict[int, str]) -> None:
        self.reads, self.torchs, self.paths = reads, torchs, paths
        self._torch, self._users = dict[str, bool](), dict[str, bool]()

    def _by_user(self, depth: int = 2, *, torchs: bool = False) -> bool:
        """True if the function that calls the one which asks here is not of this package, nor of torch."""
        name = str(sys._getframe(depth).f_globals.get("__name__"))
        known = self._users.get(name)
        if known is None:
            self._torch[name] = is_torch(name)
            known = self._users[name] = not self._torch[name] and name.partition(".")[0] != "fxprune"
        return known or (torchs and self._torch[name])

    def training(self, module: nn.Module) -> bool:
        """The mode of a module."""
        if self._by_user(torchs=self.torchs):
            self.reads.modes.add(self.paths.get(id(module), ""))
        try:
            return bool(dict.__getitem__(vars(module), "training"))
        except KeyError:  # then `__getattr__` of the module's class is asked, as it is without a property
            raise AttributeError(f"{type(module).__name__!r} object has no attribute 'training'") from None

    def attributes(self, path: str) -> None:
        """Note that a method of the `__dict__` of a module gives its mode."""
        if self._by_user(3):
            self.reads.modes.add(path)

    def flag(self, member: Any) -> Callable[[torch.Tensor], Any]:
        """The function that reads an attribute of a tensor. That of a parameter is the same without gradients."""
        read = member.__get__

        def flag(tensor: torch.Tensor) -> Any:
            if not self.reads.gradients and self._by_user() and not isinstance(tensor, nn.Parameter):
                self.reads.gradients = True
            return read(tensor)

        return flag

    @property
    def grad_enabled(self) -> Callable[[], bool]:
        """The function in place of `torch.is_grad_enabled`."""

        def is_grad_enabled() -> bool:
            self.reads.gradients |= self._by_user()
            return bool(_GRADIENTS())

        return is_grad_enabled

    @property
    def inference_enabled(self) -> Callable[[], bool]:
        """The function in place of `torch.is_inference_mode_enabled`."""

        def is_inference_mode_enabled() -> bool:
            self.reads.inference |= self._by_user()
            return bool(_INFERENCE())

        return is_inference_mode_enabled

    @property
    def is_inference(self) -> Callable[[torch.Tensor], bool]:
        """The method in place of `torch.Tensor.is_inference`."""
        member: Any = torch._C.TensorBase.is_inference

        def is_inference(tensor: torch.Tensor) -> bool:
            self.reads.inference |= self._by_user()
            return bool(member(tensor))

        return is_inference


class _Attributes(dict[str, Any]):
    """The `__dict__` of a module, which notes who reads the mode out of it."""

    def __init__(self, own: dict[str, Any], note: Callable[[str], None], path: str) -> None:
        super().__init__(own)
        self._note, self._path = note, path

    def __getitem__(self, name: str) -> Any:
        if name == "training":
            self._note(self._path)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        if name == "training":
            self._note(self._path)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:  # Python copies a dict with one of its own by `keys` and `__getitem__`
        return super().__iter__()

    def items(self) -> Any:
        self._note(self._path)
        return super().items()

    def values(self) -> Any:
        self._note(self._path)
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._note(self._path)
        return dict(super().items())

    def __reduce__(self) -> Any:
        self._note(self._path)
        return dict, (dict(super().items()),)


def _note_attributes(stack: contextlib.ExitStack, module: nn.Module, asked: _Asked) -> None:
    """Replace the `__dict__` of a module by one that notes. A module that does not allow it keeps its own."""
    own = module.__dict__
    if type(own) is not dict:
        return
    noting = _Attributes(own, asked.attributes, asked.paths[id(module)])
    try:
        object.__setattr__(module, "__dict__", noting)
    except (AttributeError, TypeError):
        return

    def back() -> None:
        own.clear()
        own.update(dict.items(noting))
        object.__setattr__(module, "__dict__", own)

    stack.callback(back)


def _set_training(module: nn.Module, value: bool) -> None:
    vars(module)["training"] = value


def _delete_training(module: nn.Module) -> None:
    dict.pop(vars(module), "training")
