"""The refit of one layer of each kind equals the least-squares solution on all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Stack(nn.Module):
    """A producer, an activation and the layer that reads it."""

    def __init__(self, producer: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.producer, self.layer = producer, layer

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer makes of the activations."""
        return self.layer(torch.tanh(self.producer(x)))


class Stacked(nn.Module):
    """A product with a stack of matrices: [g, r, k] times [g, k, o]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 12, 5))

    def forward(self, x: Tensor) -> Tensor:
        """y = x w"""
        return torch.bmm(x[None], self.weight)[0]


class OfColumns(nn.Module):
    """A linear layer with weight [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        """y = bias + x w"""
        return torch.addmm(self.bias, x, self.weight)


def conv(dims: int, **options: object) -> Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...]]]:
    """A case with convolutions."""

    def make() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        return kind(3, 12, 1), kind(12, 6 if dims < 3 else 2, 3, **options), (3, *(7, 6, 5)[:dims])

    return make


def transposed(dims: int, **options: object) -> Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...]]]:
    """A case with transposed convolutions."""

    def make() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        other = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        return kind(3, 12, 1), other(12, 6 if dims < 3 else 2, 3, **options), (3, *(5, 4, 3)[:dims])

    return make


CASES = {
    "linear": lambda: (nn.Linear(4, 12), nn.Linear(12, 5), (4,)),
    "linear without bias": lambda: (nn.Linear(4, 12), nn.Linear(12, 5, bias=False), (4,)),
    "linear on tokens": lambda: (nn.Linear(4, 12), nn.Linear(12, 5), (6, 4)),
    "columns": lambda: (nn.Linear(4, 12), OfColumns(), (4,)),
    "stack of matrices": lambda: (nn.Linear(4, 12), Stacked(), (4,)),
    "conv1d": conv(1),
    "conv2d": conv(2, padding=1),
    "conv2d strided, dilated": conv(2, stride=2, dilation=2, padding=(2, 1)),
    "conv2d padded same": conv(2, padding="same"),
    "conv2d padded with what is there": conv(2, padding=1, padding_mode="circular"),
    "conv2d grouped": conv(2, groups=3, padding=1),
    "conv3d": conv(3, bias=False),
    "transposed conv1d": transposed(1, stride=2, output_padding=1),
    "transposed conv2d": transposed(2, stride=2, padding=1, dilation=2),
    "transposed conv2d grouped": transposed(2, groups=3, stride=(2, 1)),
    "transposed conv3d": transposed(3, bias=False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_gets_the_least_squares_solution(name: str) -> None:
    torch.manual_seed(0)
    producer, layer, shape = CASES[name]()
    net = Stack(producer, layer).double().eval()
    data = [torch.randn(8, *shape, dtype=torch.float64) for _ in range(10)]
    small = fxprune.transform(net, data[0], ratio=0.5, ignore=["layer"], path="eager")
    repaired = fxprune.repair(small, net, data, ridge=0.0)
    done = fxprune.record(repaired).repair
    assert done is not None
    assert not done.undone
    assert not done.left
    assert done.after < done.before
    train = torch.cat([x for number, x in enumerate(data) if number not in (4, 9)])  # 2 of 10 are held out
    best = _least_squares(small, net, train)
    error = (repaired(train) - net(train)).square().sum()
    assert error <= best * (1 + 1e-9) + 1e-18
    assert error >= best * (1 - 1e-9) - 1e-18


def _least_squares(small: nn.Module, net: nn.Module, x: Tensor) -> Tensor:
    """The least squared error of the layer's outputs, over all weights: its outputs are linear in them."""
    layer = small.get_submodule("layer")
    with torch.no_grad():
        features = torch.tanh(small.get_submodule("producer")(x))
        wanted = net(x).flatten()
        numbers = list(layer.parameters())
        for p in numbers:
            p.zero_()
        columns = []
        for p in numbers:
            for position in range(p.numel()):
                p.view(-1)[position] = 1
                columns.append(layer(features).flatten())
                p.view(-1)[position] = 0
        matrix = torch.stack(columns, 1)
        found = torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution
        return (matrix @ found - wanted[:, None]).square().sum()
