"""Running a forward so that its outputs can be compared: no random numbers, no gradients, one precision."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.process_state import no_fused_attention, same_random_state
from fxprune.proof.own_kernels import own_kernel
from fxprune.proof.precision import FLOAT64, Precision


@contextlib.contextmanager
def deterministic(precision: Precision = FLOAT64) -> Iterator[NoRandomness]:
    """Run without gradients, random numbers and fused attention; casts to floating types become casts to `precision`.

    Yields the mode, which knows the kernels that it replaced.
    """
    mode = NoRandomness(precision)
    with torch.no_grad(), same_random_state(), no_fused_attention(), mode:
        yield mode


class NoRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in which random numbers are constants, and casts to floating types become casts to `precision`.

    Dropout keeps everything, so that a graph which was traced in training mode can be compared. The casts make models
    with mixed precision run in float64.

    CONSTANTS: name of an operation whose numbers are random, or what the memory held -> the value of all its numbers.
    replaced: the names of the kernels that refused, so that other code has computed their results.
    """

    CONSTANTS: Mapping[str, float] = {
        **dict.fromkeys(("bernoulli", "bernoulli_", "exponential", "exponential_"), 1.0),
        **dict.fromkeys(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"), 0.0),
        **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_"), 0.5),
        **dict.fromkeys(("randn", "randn_like", "normal", "normal_"), 0.0),
    }

    def __init__(self, precision: Precision = FLOAT64) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision = precision
        self.replaced: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, seeded, cast = _known(func)
        if cast and kwargs and self.precision.dtype is not None:
            dtype = kwargs.get("dtype")
            if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
                kwargs = {**kwargs, "dtype": self.precision.dtype}
        if name in ("rrelu_with_noise", "rrelu_with_noise_"):
            return _rrelu(func, *args, **(kwargs or {}))
        if seeded and name not in self.CONSTANTS:
            torch.manual_seed(0)  # the same numbers, however many were drawn before
        try:
            made = func(*args, **(kwargs or {}))
        except RuntimeError:
            made = own_kernel(func, args, kwargs or {})
            if made is None:
                raise
            self.replaced.add(name)
        if name in self.CONSTANTS:
            made.fill_(self.CONSTANTS[name])
        elif name == "native_dropout":
            made = (args[0].clone(), torch.ones_like(made[1]))
        return made


@functools.cache
def _known(func: Any) -> tuple[str, bool, bool]:
    """The name of an operation, True if it draws random numbers, and True if it takes a type of numbers."""
    casts = any(argument.name == "dtype" for argument in func._schema.arguments)
    return func._schema.name.removeprefix("aten::"), torch.Tag.nondeterministic_seeded in func.tags, casts


def _rrelu(
    func: Any,
    input: torch.Tensor,
    noise: torch.Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> torch.Tensor:
    """The result of `rrelu_with_noise`, in training with the mean of all slopes that could be drawn."""
    slope = (lower + upper) / 2
    noise.fill_(slope)
    made = torch.where(input > 0, input, input * slope)
    return input.copy_(made) if func._schema.name.endswith("_") else made
