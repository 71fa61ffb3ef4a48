"""Running a forward so that its outputs can be compared: no random numbers, no gradients, one precision."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.process_state import no_fused_attention, same_random_state


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Run without gradients, random numbers and fused attention; casts to floating types become casts to float64."""
    with torch.no_grad(), same_random_state(), no_fused_attention(), NoRandomness():  # type: ignore[no-untyped-call]
        yield


class NoRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in which random numbers are constants, and casts to floating types become casts to float64.

    Dropout keeps everything, so that a graph which was traced in training mode can be compared. The casts make models
    with mixed precision run in float64.

    CONSTANTS: name of a random operation -> the value of all its numbers.
    """

    CONSTANTS: Mapping[str, float] = {
        **dict.fromkeys(("bernoulli", "bernoulli_", "exponential", "exponential_"), 1.0),
        **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_"), 0.5),
        **dict.fromkeys(("randn", "randn_like", "normal", "normal_"), 0.0),
    }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs["dtype"] = torch.float64
        if name == "_grouped_mm":  # torch has no float64 version
            return _grouped_mm(*args, **kwargs)
        made = func(*args, **kwargs)
        if name in self.CONSTANTS:
            made.fill_(self.CONSTANTS[name])
        elif name == "native_dropout":
            made = (args[0].clone(), torch.ones_like(made[1]))
        return made


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor, **options: Any) -> torch.Tensor:
    """The product of each row of `a` with one matrix of `b`: [row, out]. Rows after the last offset give zeros.

    a: [row, in]. b: [group, in, out]. offs: [group], ascending; row i belongs to the first group g with i < offs[g].
    """
    starts = [0, *offs.tolist()]
    parts = [a[start:stop] @ b[g] for g, (start, stop) in enumerate(itertools.pairwise(starts))]
    return torch.cat([*parts, a.new_zeros(a.shape[0] - starts[-1], b.shape[2])])
