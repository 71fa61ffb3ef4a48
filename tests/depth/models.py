"""Small models with residual branches of all kinds, with random statistics and biases."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.support import randomise


class Basic(nn.Module):
    """The block of a ResNet: relu(s(x) + f(x)), added in place."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """A block of three convolutions."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + x)


class Residuals(nn.Module):
    """A ResNet of both kinds of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.layer2 = nn.Sequential(Basic(8, 12, 2), Bottleneck(12, 6))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class WithFunctions(nn.Module):
    """A block with a shortcut of another shape whose own code calls functions, so that it stays."""

    def __init__(self, width: int = 4, out: int = 6) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, 2, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.down = nn.Conv2d(width, out, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


def with_functions() -> nn.Module:
    """A net of one such block."""
    block = WithFunctions()
    return nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


class Scaled(nn.Module):
    """Branches with a layer scale of the block's own and dropout behind the branch, and one that is subtracted."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 9), nn.Linear(9, width)
        self.drop = nn.Dropout(0.1)
        self.other = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.gamma * self.down(F.gelu(self.up(self.norm(x)))))
        return x - 0.5 * self.other(x)


class Parallel(nn.Module):
    """Two branches that are added to each other first, as in GPT-J."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return self.head(x + (self.one(h) + self.two(h)))


class WithoutResidual(nn.Module):
    """Concatenation and a sum of two branches beside each other; a sum with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)
        self.position = nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([x + self.position, self.a(x) + self.b(x)], 1))


class ReadTwice(nn.Module):
    """A branch whose layer an output reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.f(x)
        return self.head(x + h), h


class EndsInItsOwnParameter(nn.Module):
    """A branch that ends in a bias of the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.bias, self.head = nn.Linear(4, 4), nn.Parameter(torch.rand(4)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + (self.f(x) + self.bias))


class InPlaceFirst(nn.Module):
    """A branch whose first operation would write into the block's input if its layer were the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.act, self.g, self.head = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.g(self.act(self.f(x))))


def encoder(**options: Any) -> nn.Module:
    """A transformer of torch with two layers."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def made(make: Any, seed: int = 0) -> nn.Module:
    """A model with random statistics and biases, in evaluation mode, in float64."""
    torch.manual_seed(seed)
    return randomise(make(), seed).double().eval()
