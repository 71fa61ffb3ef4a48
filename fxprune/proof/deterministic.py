"""Running forwards in float64 whatever they say themselves, without chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sober(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What forward does on its own account is taken out of the comparison.

    Random numbers are constants (kept, half, zero), so that a graph traced in training mode can be compared; casts to
    a floating type are casts to float64, so that mixed precision does not blur it.
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
        if name == "_grouped_mm":  # torch has it for half precision only
            return _grouped_mm(*args, **kwargs)
        made = func(*args, **kwargs)
        if name in self.CONSTANTS:
            made.fill_(self.CONSTANTS[name])
        elif name == "native_dropout":
            made = (args[0].clone(), torch.ones_like(made[1]))
        return made


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor, **options: Any) -> torch.Tensor:
    """Rows [row, into] of `a` times one matrix [into, out] of `b` each: row i by the first g with i < offs[g]."""
    starts = [0, *offs.tolist()]
    parts = [a[start:stop] @ b[g] for g, (start, stop) in enumerate(itertools.pairwise(starts))]
    return torch.cat([*parts, a.new_zeros(a.shape[0] - starts[-1], b.shape[2])])
