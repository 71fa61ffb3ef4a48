"""What a model costs: parameters, bytes and MACs, counted on fake tensors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.capture.fake import Faker
from fxprune.capture.inputs import initialised, normalize


@dataclass(frozen=True)
class Cost:
    """params: elements of all parameters. bytes: of parameters and buffers. macs: multiply-adds of one forward."""

    params: int
    bytes: int
    macs: int


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count a model's parameters, bytes, and the MACs of one forward on inputs of these shapes.

    MACs are those of convolutions, matrix products and fused attention, as `torch.utils.flop_counter` counts them
    (2 FLOPs = 1 MAC); elementwise operations, normalisations and pooling are not counted. Nothing is computed: the
    forward runs on fake tensors.

    >>> import torch, fxprune
    >>> fxprune.cost(torch.nn.Linear(10, 20), torch.zeros(3, 10))  # 10 * 20 + 20 params; 3 * 10 * 20 MACs
    Cost(params=220, bytes=880, macs=600)
    """
    args, kwargs = normalize(example_inputs)
    initialised(model)
    faker = Faker()
    twin = faker.module(model)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), faker.mode, counter:
        twin(*faker.tree(args), **faker.tree(kwargs))
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    return Cost(
        sum(p.numel() for p in model.parameters()),
        sum(t.numel() * t.element_size() for t in tensors),
        counter.get_total_flops() // 2,
    )
