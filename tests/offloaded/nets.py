"""Small models, dispatched by accelerate in several ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import accelerate
import torch
from torch import nn


class Block(nn.Module):
    """A residual block with a norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Scale(nn.Module):
    """A product with a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.by: torch.Tensor
        self.register_buffer("by", torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


class Net(nn.Module):
    """Three blocks, a scale that is a buffer, and a head whose weight is the embedding's."""

    def __init__(self, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(3))
        self.scale = Scale(width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        made: torch.Tensor = self.head(self.scale(x))
        return made


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


TOKENS = torch.arange(10).view(2, 5)


def on_cpu(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.cpu_offload(copy.deepcopy(model), "cpu")


def on_cpu_with_buffers(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.cpu_offload(copy.deepcopy(model), "cpu", offload_buffers=True)


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.disk_offload(copy.deepcopy(model), str(folder), "cpu")


def in_parts(model: nn.Module, folder: Path) -> nn.Module:
    """Some blocks in memory, others on disk."""
    devices = {"embed": "cpu", "head": "cpu", "scale": "cpu", "blocks.0": "cpu", "blocks.1": "disk", "blocks.2": "disk"}
    return accelerate.dispatch_model(copy.deepcopy(model), devices, "cpu", offload_dir=str(folder))


def whole_blocks(model: nn.Module, folder: Path) -> nn.Module:
    """Blocks that load the weights of their layers when they begin."""
    return accelerate.disk_offload(copy.deepcopy(model), str(folder), "cpu", preload_module_classes=["Block"])


def layers_on_disk(model: nn.Module, folder: Path) -> nn.Module:
    """The same of a Llama."""
    return accelerate.disk_offload(
        copy.deepcopy(model), str(folder), "cpu", preload_module_classes=["LlamaDecoderLayer"]
    )


WAYS: tuple[Callable[[nn.Module, Path], nn.Module], ...] = (
    on_cpu,
    on_cpu_with_buffers,
    on_disk,
    in_parts,
    whole_blocks,
)
