"""The groups and locked channels of ten tiny networks, as text that a reader can check by hand.

`python tests/test_golden.py --write` rewrites tests/golden/*.txt (`python -m tests.test_golden --write` where
fxprune is not installed); read the difference before you keep it.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

GOLDEN = pathlib.Path(__file__).parent / "golden"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}


def network(*shape: int) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network and the shape of its input; the text is named after the class."""

    def register(made: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[made.__name__] = (made, shape)
        return made

    return register


@network(2, 3, 7, 9)
class Residual(nn.Module):
    """stem and conv2 meet in a sum; conv1 is free; the shortcut is a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.conv1, self.bn1 = nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv3, self.shortcut = nn.Conv2d(5, 4, 1), nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.conv3(x) + self.shortcut(x)
        return self.head(x.mean((2, 3)))


@network(2, 3, 5, 4)
class Concat(nn.Module):
    """Two branches side by side, and dense growth: each producer keeps its own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(9)
        self.grow = nn.Conv2d(9, 2, 3, padding=1)
        self.out = nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.out(torch.cat([x, self.grow(x)], 1))


@network(2, 3, 4, 4)
class SharedModule(nn.Module):
    """One convolution called twice: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.twice(F.relu(self.twice(self.stem(x))))))


@network(2, 3, 4, 5)
class GroupedConv(nn.Module):
    """12 channels in 3 blocks of 4: whole blocks are removed, or the same position of every block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 3, groups=3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.grouped(F.relu(self.stem(x)))))


@network(2, 3, 4, 5)
class Depthwise(nn.Module):
    """Multiplier 1, then multiplier 2: a channel takes both of its copies along."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.bn = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.two, self.out = nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.two(F.relu6(self.bn(self.one(self.stem(x)))))))


@network(2, 3, 4, 5)
class ChannelShuffle(nn.Module):
    """A shuffle in two groups between grouped convolutions, written as views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.out(F.relu(self.second(x)))


@network(2, 3, 4, 5)
class SplitChunk(nn.Module):
    """Unequal parts and halves of one convolution are groups of their own; multiplied halves are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.gates = nn.Conv2d(3, 7, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(8, 10, 1)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).split([2, 5], dim=1)
        value, gate = self.gates(torch.cat([F.relu(self.small(a)), b], 1)).chunk(2, dim=1)
        return self.out(value * torch.sigmoid(gate))


@network(2, 3, 5, 5)
class SqueezeExcite(nn.Module):
    """The scale has the channels of what it scales; the bottleneck is free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return self.out(x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))))


@network(2, 3, 4, 5)
class FlattenToLinear(nn.Module):
    """Height * width columns of the linear layer are removed with each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4 * 2 * 3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(F.relu(self.conv(x)).flatten(1))))


@network(2, 6, 5)
class TiedWeights(nn.Module):
    """One matrix encodes, decodes transposed, and encodes again under another name: only the code can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.again, self.out = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)
        self.again.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(F.gelu(self.encode(x)), self.encode.weight.t())
        return self.out(self.again(x))


@network(2, 6, 5)
class LayerNorm(nn.Module):
    """Channels under a layer norm can go, but its statistics change."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.up, self.down, self.out = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(x + self.down(F.gelu(self.up(self.norm(x)))))


def describe(name: str) -> str:
    """The analysis of a network as text, line by line."""
    make, shape = NETWORKS[name]
    return "\n".join(lines_of(fxprune.analyze(make().eval(), torch.zeros(shape)))) + "\n"


def lines_of(analysis: fxprune.Analysis) -> Iterator[str]:
    """Groups with all slots of one of their channels, then the locked channels by operation."""
    for group in analysis.groups:
        yield f"{group.name}: {group.size} {group.kind}, {'exact' if group.exact else 'inexact'}"
        for reason in group.reasons:
            yield f"  because {without_line(reason)}"
        for member in group.members:
            slots: list[list[int]] = [[] for _ in range(group.size)]
            for channel, slot in zip(member.index.tolist(), member.slots.tolist(), strict=True):
                slots[channel].append(slot)
            yield f"  {member.parameter}[{member.dim}]: " + " | ".join(" ".join(map(str, s)) for s in slots)
    for parameter, aliases in analysis.aliases.items():
        yield f"tied: {parameter} = {' = '.join(aliases)}"
    yield "locked:"
    for locked in analysis.locked:
        event = locked.event
        yield f"  {event.op} in {event.module or 'the model'} ({file_of(event.source)}): {event.why}"
        for (parameter, dim), count in locked.slots.items():
            yield f"    {parameter}[{dim}]: {count} slots"


def file_of(source: str) -> str:
    """The file's name only: lines move."""
    return pathlib.PurePath(source.rpartition(":")[0] or source).name


def without_line(reason: str) -> str:
    """A reason with its source reduced to the file's name."""
    before, _, rest = reason.partition(" (")
    source, _, why = rest.partition("): ")
    return f"{before} ({file_of(source)}): {why}"


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_as_written(name: str) -> None:
    assert describe(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_text_has_its_network() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_network_can_be_removed(name: str) -> None:
    """The texts are about networks that the rest of the pass accepts."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=0, prefer="graph")
    assert fxprune.verify(net, small, x) < 1e-9
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def main(arguments: list[str]) -> None:
    """Print the texts, or write them."""
    for name in NETWORKS:
        if arguments == ["--write"]:
            (GOLDEN / f"{name}.txt").write_text(describe(name), encoding="utf-8")
        else:
            print(f"== {name}\n{describe(name)}")


if __name__ == "__main__":
    main(sys.argv[1:])
