"""State of the calling thread that changes what torch does, set to the usual one during a call.

| state | during a call |
| --- | --- |
| `torch.inference_mode` | off: tensors that are made can be trained |
| `torch.no_grad`, `torch.set_grad_enabled` | gradients are recorded, where nothing inside switches them off |
| `torch.autocast` | off: operations have the dtypes of the model |
| modes of `__torch_dispatch__` and `__torch_function__` | none, so that no other code sees or replaces operations |

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
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

_OVERRIDES: Any = overrides

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
    ):
        yield


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
