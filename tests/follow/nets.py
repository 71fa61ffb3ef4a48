"""Small networks whose training state follows, and the masked original that says what is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxprune
from tests.support import randomise


class Net(nn.Module):
    """Convolutions, batch norms and a head, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.stem(x)).relu()
        return self.head((h + self.outer(self.inner(h).relu())).mean((2, 3)))


class Residual(nn.Module):
    """A network of two branches, each of which may go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def net() -> Net:
    torch.manual_seed(0)
    made = Net().double()
    randomise(made, 0)
    return made.eval()


def batch(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(batch(seed)).square().mean().backward()
    optimizer.step()


def zero_removed(model: nn.Module, removed: Any) -> None:
    """Set the removed slots of every parameter and buffer to zero, as the masked original has them."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            for dim, indices in removed.get(name, {}).items():
                tensor.index_fill_(dim, torch.tensor(indices), 0.0)


def kept(tensor: torch.Tensor, removed: Any) -> torch.Tensor:
    """The kept part of a tensor."""
    for dim, indices in removed.items():
        stays = [slot for slot in range(tensor.shape[dim]) if slot not in set(indices)]
        tensor = tensor.index_select(dim, torch.tensor(stays))
    return tensor


def differences(model: nn.Module, small: nn.Module, removed: Any) -> dict[str, float]:
    """Parameter -> the largest difference between the kept part of the masked original and the small model."""
    made = dict(small.named_parameters())
    return {
        name: float((kept(p.detach(), removed.get(name, {})) - made[name].detach()).abs().max())
        for name, p in model.named_parameters()
    }


def pruned(model: nn.Module, **options: Any) -> nn.Module:
    return fxprune.transform(model, batch(0), **{"ratio": 0.5, **options})
