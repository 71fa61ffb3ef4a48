"""Counts of coactivations on a CPU: one product of matrices of zeros and ones, a byte each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WINDOWS = 2**22
"""The most bytes of windows in memory at a time; those of one example may be more."""


def fits(x: Tensor, groups: int) -> bool:
    """True if `window_counts` can count these inputs, and is faster than the gradient of a convolution.

    Products of bytes are fast where oneDNN multiplies them (https://uxlfoundation.github.io/oneDNN), as on x86-64.
    """
    return type(x) is Tensor and x.device.type == "cpu" and groups == 1 and _fast_and_right()


@functools.cache
def _fast_and_right() -> bool:
    """True if this build of torch has a fast product of bytes, and it multiplies two small matrices right."""
    one_dnn: Any = torch.backends.mkldnn
    if not hasattr(torch, "_int_mm") or not one_dnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    a, b = (torch.arange(rows * 300).reshape(rows, 300) % 7 > 2 for rows in (18, 33))
    return torch.equal(_product(a.to(torch.int8), b.to(torch.int8)), (a.double() @ b.double().t()).int())


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b.T as int32.

    `torch._int_mm` of torch 2.13 is wrong where one column of each is all there is, and where rows overlap in memory,
    as the windows of a single example do.
    """
    return torch._int_mm(a.contiguous(), b.contiguous().t()) if a.shape[1] > 1 else a.to(torch.int32) * b.t()


def window_counts(
    a: Tensor, b: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """C[o, i, k] = sum over n, s of a[n, i, stride * s + dilation * k] * b[n, o, s], as int32.

    a: zeros and ones, int8 [n, c_in, *sizes], padded. b: the same, [n, c_out, *positions].

    The windows of a are copied for some examples at a time, as a matrix [c_in * k, n * positions]. With a stride of 1
    the positions are counted in the sizes of a, so that they follow each other in memory, and b has zeros between them.
    """
    a = a.contiguous()
    n, inputs, *sizes = a.shape
    outputs, positions = b.shape[1], list(b.shape[2:])
    jumps = [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]  # from a position to the next one in a dimension
    taps = [jump * apart for jump, apart in zip(jumps, dilation, strict=True)]
    outer = (jumps[0] * sizes[0], *taps, inputs * jumps[0] * sizes[0])
    if all(step == 1 for step in stride):
        shape = [sum((size - 1) * jump for size, jump in zip(positions, jumps, strict=True)) + 1]
        steps = [1]
        spread = b.new_zeros(outputs, n, positions[0], *sizes[1:])
        inside = spread
        for dim, size in enumerate(positions[1:], 3):
            inside = inside.narrow(dim, 0, size)
        inside.copy_(b.transpose(0, 1))
        b = spread.flatten(2)[..., : shape[0]]
    else:
        shape, steps = positions, [jump * step for jump, step in zip(jumps, stride, strict=True)]
        b = b.transpose(0, 1).flatten(2)
    rows = inputs * math.prod(kernel)
    part = max(1, WINDOWS // (rows * b.shape[2]))
    total = None
    for first in range(0, n, part):
        some = min(part, n - first)
        windows = a[first:].as_strided((inputs, *kernel, some, *shape), (*outer, *steps)).reshape(rows, -1)
        counts = _product(b[:, first : first + some].reshape(outputs, -1), windows)
        total = counts if total is None else total.add_(counts)
    assert total is not None
    return total.view(outputs, inputs, *kernel)
