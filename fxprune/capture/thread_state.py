"""State of the calling thread that changes what torch does, set to the usual one during a call.

| state | during a call |
| --- | --- |
| `torch.inference_mode` | off: tensors that are made can be trained |
| `torch.no_grad`, `torch.set_grad_enabled` | gradients are recorded, where nothing inside switches them off |
| `torch.autocast` | off: operations have the dtypes of the model |
| modes of `__torch_dispatch__` and `__torch_function__` | none, so that no other code sees or replaces operations |
| levels of `torch.func` | those that a call leaves behind are ended |

The default device and the default dtype stay as they are, because a forward that makes tensors may need them.
`same_state` takes what a forward may need to another thread: the default device, and the current device and stream of
CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import overrides
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

_OVERRIDES: Any = overrides
_FUNCTORCH: Any = torch._C._functorch

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
"""The types of devices for which autocast may be on."""


@contextlib.contextmanager
def usual_state() -> Iterator[None]:
    """Gives a call the state that a thread has when it starts, and its caller's state back at the end."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(True),
        _no_autocast(),
        _disable_current_modes(),
        _no_function_modes(),
        same_levels(),
    ):
        yield


@contextlib.contextmanager
def same_levels() -> Iterator[None]:
    """Ends the levels of `torch.func` (`vmap`, `grad`, `jvp`) that a call leaves behind.

    An exported graph begins and ends the level of a `vmap` by two nodes. An error between them leaves it on: then no
    tensor of this thread can be trained. The level of forward mode, of `jvp`, is one of its own.
    """
    before, forward_mode = _FUNCTORCH.get_dynamic_layer_stack_depth(), _in_forward_mode()
    try:
        yield
    finally:
        if _FUNCTORCH.get_dynamic_layer_stack_depth() > before:
            _FUNCTORCH.pop_dynamic_layer_stack_and_undo_to_depth(before)
        if not forward_mode and _in_forward_mode():
            torch._C._exit_dual_level(level=0)


def _in_forward_mode() -> bool:
    """True if the level of forward mode is on: torch has one, and raises where a second one begins."""
    try:
        level = torch._C._enter_dual_level()
    except RuntimeError:
        return True
    torch._C._exit_dual_level(level=level)
    return False


@contextlib.contextmanager
def outside_levels() -> Iterator[None]:
    """Leaves the levels of `torch.func` that are on, so that tensors are made and read as without them."""
    if _FUNCTORCH.maybe_current_level() is None:
        yield
    else:
        with temporarily_clear_interpreter_stack():
            yield


def of_no_level(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that operations compute with, where `vmap` or `grad` gives a function another one."""
    while _FUNCTORCH.is_functorch_wrapped_tensor(tensor):
        tensor = _FUNCTORCH.get_unwrapped(tensor)
    return tensor


def same_state() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context manager for another thread, which gives it the state that a forward of this thread may need."""
    modes = [mode for mode in _OVERRIDES._get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def given() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            _set_function_modes(modes)
            yield

    return given


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Turns off autocast for every type of device for which it is on."""
    kinds = [kind for kind in DEVICE_TYPES if torch.is_autocast_enabled(kind)]
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)


@contextlib.contextmanager
def _no_function_modes() -> Iterator[None]:
    """Takes all modes of `__torch_function__` away, but for the one that holds the default device."""
    before: list[Any] = _OVERRIDES._get_current_function_mode_stack()
    _set_function_modes([mode for mode in before if isinstance(mode, DeviceContext)])
    try:
        yield
    finally:
        _set_function_modes(before)


def _set_function_modes(modes: Sequence[Any]) -> None:
    """Make these modes of `__torch_function__` the active ones, the innermost last."""
    for _ in _OVERRIDES._get_current_function_mode_stack():
        _OVERRIDES._pop_mode()
    for mode in modes:
        _OVERRIDES._push_mode(mode)
