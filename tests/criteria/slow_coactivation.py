"""Slow methods to count coactivations and to correlate: references of tests and benchmarks.

`single_units`, `stacked_units` and `brute_force` are the three methods of the notes that the dynamic layers go back to,
with padding, dilation, groups and any number of dimensions added. Each is built for a convolution and then called with
an input and an output, so that a benchmark can leave the building out.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Counter = Callable[[Tensor, Tensor], Tensor]


def active(x: Tensor) -> Tensor:
    """Ones where sigmoid(x) > 0.5."""
    return (torch.sigmoid(x) > 0.5).to(x.dtype)


def units(conv: nn.Module) -> list[tuple[int, ...]]:
    """The connections of one output channel: every (i, *k)."""
    return list(itertools.product(*(range(size) for size in conv.weight.shape[1:])))


def without_bias(conv: nn.Module) -> nn.Module:
    """A copy whose weights are all zero."""
    single = copy.deepcopy(conv).requires_grad_(False)
    single.bias = None
    single.weight.zero_()
    return single


def single_units(conv: nn.Module) -> Counter:
    """f1: one convolution per connection, which puts the input of that connection where its output is."""
    convs = []
    for unit in units(conv):
        single = without_bias(conv)
        single.weight[(slice(None), *unit)] = 1
        convs.append((unit, single))

    def method(x: Tensor, y: Tensor) -> Tensor:
        counts, s1 = torch.zeros_like(conv.weight.detach()), active(y)
        dims = [d for d in range(y.ndim) if d != 1]
        for unit, single in convs:
            counts[(slice(None), *unit)] = (s1 * active(single(x))).sum(dims)
        return counts

    return method


def stacked_units(conv: nn.Module) -> Counter:
    """f2: the same convolutions as the groups of a single one."""
    copies = units(conv)
    stacked = without_bias(conv)
    stacked.in_channels, stacked.out_channels, stacked.groups = (
        n * len(copies) for n in (conv.in_channels, conv.out_channels, conv.groups)
    )
    weight = torch.zeros(len(copies), *conv.weight.shape, dtype=conv.weight.dtype)
    for number, unit in enumerate(copies):
        weight[(number, slice(None), *unit)] = 1
    stacked.weight = nn.Parameter(weight.flatten(0, 1), requires_grad=False)

    def method(x: Tensor, y: Tensor) -> Tensor:
        repeats = (1, len(copies), *[1] * (x.ndim - 2))
        together = active(stacked(x.repeat(repeats))) * active(y).repeat(repeats)
        sums = together.sum([d for d in range(y.ndim) if d != 1])
        return sums.reshape(len(copies), conv.out_channels).T.reshape(conv.weight.shape)

    return method


def padded(conv: nn.Module, x: Tensor, value: float = 0.0) -> Tensor:
    """The input with what the convolution puts around it."""
    if isinstance(conv, nn.Linear) or conv.padding == "valid":
        return x
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in conv.padding]
    margins = [n for side in reversed(sides) for n in side]
    if conv.padding_mode == "zeros":
        return F.pad(x, margins, value=value)
    return F.pad(x, margins, mode=conv.padding_mode)


def pairs(conv: nn.Module, x: Tensor, y: Tensor):
    """For every connection and position: the index of the connection, and those of input and output without n."""
    width = conv.weight.shape[0] // conv.groups
    for o, position in itertools.product(range(conv.out_channels), itertools.product(*map(range, y.shape[2:]))):
        for i, *k in units(conv):
            channel = o // width * conv.weight.shape[1] + i
            terms = zip(position, conv.stride, k, conv.dilation, strict=True)
            yield (o, i, *k), (channel, *(s * step + at * apart for s, step, at, apart in terms)), (o, *position)


def brute_force(conv: nn.Module, threshold: float = 0.0) -> Counter:
    """f3: a loop over all connections, positions and examples."""

    def method(x: Tensor, y: Tensor) -> Tensor:
        counts = torch.zeros_like(conv.weight.detach())
        a, b = (padded(conv, x, -math.inf) > threshold).tolist(), (y > threshold).tolist()
        for connection, at, to in pairs(conv, x, y):
            for n in range(len(x)):
                source, target = a[n], b[n]
                for index in at:
                    source = source[index]
                for index in to:
                    target = target[index]
                counts[connection] += source and target
        return counts

    return method


def correlations(conv: nn.Module) -> Counter:
    """f2b as loops: mean over positions of |cov / (std * std)|; the covariance is over n, the deviations over n - 1."""

    def method(x: Tensor, y: Tensor) -> Tensor:
        sums, x = torch.zeros_like(conv.weight.detach()), padded(conv, x)
        for connection, at, to in pairs(conv, x, y):
            s1, s2 = x[(slice(None), *at)], y[(slice(None), *to)]
            if s1.std() > 1e-12 and s2.std() > 1e-12:
                sums[connection] += (((s1 - s1.mean()) * (s2 - s2.mean())).mean() / (s1.std() * s2.std())).abs()
        return sums / math.prod(y.shape[2:])

    return method
