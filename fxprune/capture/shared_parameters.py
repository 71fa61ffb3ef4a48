"""Parameters of a model whose memory copies of it share for a run, which writes into them all the same.

A copy of all weights would double the memory of a large model, and hardly a forward writes into one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fxprune.capture.given_attributes import as_parameter
from fxprune.capture.layouts import is_packed, memory_of

_STATISTICS = ("running_mean", "running_var")
"""The arguments that norms write into, and do not say so."""
_OPEN_MEMORY = frozenset({"numpy", "__array__", "__dlpack__", "storage", "untyped_storage"})
"""The methods of a tensor through which code writes into its memory without an operation of torch."""


class SharedParameters:
    """Tensors that stand for parameters, in the same memory. What a run writes into them is theirs alone."""

    def __init__(self) -> None:
        self._stand_ins: dict[int, list[torch.Tensor]] = {}
        self._memories: dict[int, torch.UntypedStorage] = {}

    def stand_in(self, parameter: torch.Tensor) -> torch.Tensor:
        """A tensor that stands for a parameter. The runs that use it have to be in `kept`."""
        made = parameter.data  # with versions of its own, unlike a detached one
        as_parameter(made, parameter)
        self._stand_ins.setdefault(memory_of(made), []).append(made)
        self._memories[memory_of(made)] = made.untyped_storage()
        return made

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """A run after which the parameters have the numbers that they had, and the stand-ins those that were written.

        The memory of a parameter is copied before the first operation that writes into it.
        """
        before: dict[int, torch.UntypedStorage] = {}

        def about_to_write(tensor: Any) -> None:
            if type(tensor) not in (torch.Tensor, nn.Parameter):
                return
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                memory = memory_of(tensor)
                if memory in self._stand_ins and memory not in before:
                    before[memory] = _copied(self._memories[memory])

        try:
            with _Operations(about_to_write), _Openings(about_to_write):
                yield
        finally:
            with _disable_current_modes(), torch.no_grad():
                for memory, numbers in before.items():
                    self._part(memory, numbers)

    def _part(self, memory: int, numbers: torch.UntypedStorage) -> None:
        """Give the stand-ins in a memory one of their own, with the numbers of now, and the memory those of before."""
        held = [tensor for tensor in self._stand_ins.pop(memory) if memory_of(tensor) == memory]
        shared = self._memories.pop(memory)
        own = _copied(shared)
        shared.copy_(numbers, non_blocking=False)
        for tensor in held:
            now = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.data = now.set_(own, tensor.storage_offset(), tensor.shape, tensor.stride())


def _copied(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory).clone().untyped_storage()


def may_share(tensor: torch.Tensor) -> bool:
    """True for a parameter in plain memory, which was not made in `torch.inference_mode`."""
    plain = type(tensor) is nn.Parameter and tensor.layout is torch.strided and not is_packed(tensor)
    return plain and not tensor.is_inference()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells about each tensor that an operation is about to write into."""

    def __init__(self, about_to_write: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = about_to_write

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes or argument.name in _STATISTICS:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    self._tell(tensor)
        return func(*args, **kwargs)


class _Openings(TorchFunctionMode):
    """Tells about each tensor whose memory code is about to get."""

    def __init__(self, about_to_write: Any) -> None:
        super().__init__()
        self._tell = about_to_write

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _OPEN_MEMORY:
            self._tell(args[0])
        return func(*args, **(kwargs or {}))
