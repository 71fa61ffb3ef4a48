"""Seconds of the pass as models grow: in depth, in width, in edges of a dense block; and steps of a sequence.

Processor seconds of one thread, without the proof, each model in a process of its own that has pruned a small one
before. The exponent of a row is that between it and the row before: 1 is proportional.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from tests.benchmarks.common import in_fresh_process, model_and_input, processor_seconds, table
from tests.support import torchvision

RATIO = 0.3
SEQUENCES = ("resnet50", "densenet121", "vit_b_16")
ROUNDS = 3


class Dense(nn.Module):
    """A dense block: each layer reads the concatenated results of all layers before it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8 * (i + 1), 8, 1) for i in range(layers))
        self.last = nn.Conv2d(8 * (layers + 1), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (batch, 8, height, width) to (batch, 4, height, width)."""
        made = [x]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1)).relu())
        return self.last(torch.cat(made, 1))


class UShaped(nn.Module):
    """A chain of blocks down and a chain up, with a skip connection per block, as a U-Net has."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (batch, 3, height, width) to pictures."""
        y = self.first(x)
        skips = []
        for layer in self.down:
            y = layer(y).relu()
            skips.append(y)
        for layer in self.up:
            y = layer(torch.cat([y, skips.pop()], 1)).relu()
        return self.last(y)


def llama(layers: int) -> tuple[nn.Module, Any]:
    """A Llama of width 64 with grouped queries."""
    torchvision()
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(num_hidden_layers=layers, vocab_size=100, **sizes)
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(16)[None]}


def chain(layers: int) -> tuple[nn.Module, Any]:
    """A chain of linear layers of width 16."""
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(layers))), torch.randn(1, 16)


def wide(channels: int) -> tuple[nn.Module, Any]:
    """Two linear layers with so many channels in between, and a batch norm."""
    layers = nn.Linear(8, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, 8)
    return nn.Sequential(*layers), torch.randn(2, 8)


FAMILIES: Mapping[str, tuple[Callable[[int], tuple[nn.Module, Any]], tuple[int, ...]]] = {
    "Llama, layers": (llama, (2, 5, 10, 20, 40, 80)),
    "chain of linear layers, layers": (chain, (10, 100, 1000)),
    "U-Net, blocks on each side": (lambda blocks: (UShaped(blocks), torch.randn(1, 3, 16, 16)), (4, 16, 64)),
    "linear layers, channels": (wide, (1024, 4096, 16384, 65536)),
    "dense block, layers": (lambda layers: (Dense(layers), torch.randn(1, 8, 4, 4)), (8, 16, 32, 64)),
}
"""Family -> a function that gives the model and its input, and the sizes."""


def prune(model: nn.Module, inputs: Any) -> nn.Module:
    """The model without 30 % of every group, not proven."""
    return fxprune.transform(model, inputs, ratio=RATIO, importance="l1", verify=False)


def seconds_of(family: str, size: int) -> float:
    """The least of some rounds of the seconds of one model."""
    build, sizes = FAMILIES[family]
    prune(*_ready(build(sizes[0])))
    model, inputs = _ready(build(size))
    return min(processor_seconds(lambda: prune(model, inputs)) for _ in range(ROUNDS))


def sequence(name: str) -> list[float]:
    """The least seconds of the first, second and third step of a sequence."""
    model, x = model_and_input(name)
    prune(model, x)
    times = []
    for _ in range(3):
        times.append(min(processor_seconds(lambda model=model: prune(model, x)) for _ in range(ROUNDS)))
        model = prune(model, x)
    return times


def _ready(made: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    model, inputs = made
    return model.eval(), inputs


def measure(families: Sequence[str] = tuple(FAMILIES), names: Sequence[str] = SEQUENCES) -> str:
    """Both tables."""
    rows: list[tuple[object, ...]] = []
    for family in families:
        sizes = FAMILIES[family][1]
        times = [in_fresh_process(__spec__.name, "--one", family, size) for size in sizes]
        for i, (size, time) in enumerate(zip(sizes, times, strict=True)):
            # a dense block of n layers has n (n + 1) / 2 edges
            work = [n * (n + 1) / 2 if family.startswith("dense") else n for n in sizes]
            slope = math.log(time / times[i - 1]) / math.log(work[i] / work[i - 1]) if i else None
            rows.append((family, size, time, slope))
    steps = []
    for name in names:
        times = in_fresh_process(__spec__.name, "--sequence", name)
        steps.append((name, *times, times[1] / times[0]))
    growth = table(("what grows", "size", "transform (s)", "exponent"), rows, ("", "", ".2f", ".2f"))
    headers = ("model", "first step (s)", "second (s)", "third (s)", "second / first")
    return f"{growth}\n\n{table(headers, steps)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, help="a family and a size, in this process")
    parser.add_argument("--sequence", help="a model, in this process")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(seconds_of(options.one[0], int(options.one[1]))))
    elif options.sequence:
        print(json.dumps(sequence(options.sequence)))
    else:
        print(measure())


if __name__ == "__main__":
    main()
