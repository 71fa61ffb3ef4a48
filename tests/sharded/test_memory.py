"""The memory of a process while a sharded model is pruned, as the system counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import fxprune
from tests.processes import run_together

LAYERS, WIDTH = 24, 1024
WEIGHT = WIDTH * WIDTH * 4
"""The bytes of a weight in float32."""


def made(layers: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]
    for part in parts:
        fully_shard(part)
    return fully_shard(nn.Sequential(*parts, nn.Linear(width, 4)))


def now(key: str) -> int:
    """A figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(key))) * 1024


def pruned(rank: int) -> int:
    """The bytes by which a process grows at most while it prunes."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
    fxprune.transform_(made(2, 8), torch.randn(1, 8), ratio=0.5)  # what is imported and made once
    model = made(LAYERS, WIDTH)
    before = now("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    fxprune.transform_(model, torch.randn(1, WIDTH), ratio=0.5)
    return now("VmHWM") - before


@pytest.mark.slow
def test_a_process_grows_by_a_few_weights_and_not_by_the_model() -> None:
    shards_of_the_small_model = LAYERS * WEIGHT // 4 // 2
    grown = run_together(pruned, 2)
    print([f"{(each - shards_of_the_small_model) / WEIGHT:.1f} weights" for each in grown])
    assert max(grown) < shards_of_the_small_model + 8 * WEIGHT  # the model has 24
