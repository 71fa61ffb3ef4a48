"""Models for the command line to name; their numbers come from the global generator, so from --seed."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.support import randomise, torchvision


class Net(nn.Module):
    def __init__(self, width=16, act="relu"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3)
        self.head = nn.Linear(2 * width, 10)
        self.act = getattr(torch, act)

    def forward(self, x):
        x = self.act(self.norm(self.conv1(x)))
        return self.head(self.act(self.conv2(x)).mean((2, 3)))


def net(width=16):
    print("noise on stdout")  # printed by the model's code; not a result
    return randomise(Net(width), int(torch.randint(1 << 30, ())))


def loaded():
    """A model that loads weights of its own."""
    model = Net()
    model.load_state_dict(net().state_dict())
    return model


class Single(nn.Module):
    """It makes a state without a dtype, and so does not run in float64."""

    def __init__(self):
        super().__init__()
        self.a, self.gru, self.b = nn.Linear(7, 12), nn.GRU(12, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.b(self.gru(torch.tanh(self.a(x)), torch.zeros(1, x.shape[0], 12))[0])


def constant():
    """A model whose numbers come from no generator of torch's own."""
    model = nn.utils.skip_init(nn.Linear, 4, 8), nn.ReLU(), nn.utils.skip_init(nn.Linear, 8, 3)
    return randomise(nn.Sequential(*model), 0, weights=True)


def by_numpy():
    """A model whose weights are drawn by the global generator of NumPy."""
    model = constant()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(np.random.standard_normal(parameter.shape)))  # the case
    return model


def by_python():
    """A model with one weight that the generator of Python has drawn."""
    model = constant()
    with torch.no_grad():
        model[0].weight[0, 0] = random.gauss(0, 1)
    return model


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, ids, scale):
        return self.down(torch.relu(self.up(self.norm(self.embed(ids) * scale))))


class Staged(nn.Module):
    """Returns its features beside its result."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        features = torch.relu(self.first(x))
        return {"boxes": self.second(features), "features": [features]}


def staged():
    return randomise(Staged(), int(torch.randint(1 << 30, ())))


def normed():
    return randomise(Normed(), int(torch.randint(1 << 30, ())))


def dead():
    """Three filters of the first layer are zero."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0.0
    return model


def fixed():
    """A model without channels to remove."""
    return nn.Linear(4, 3)


def resnet():
    return torchvision().models.resnet18(num_classes=10)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.embed(ids)))


model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
number = 5


def slow(mark):
    Path(mark).touch()
    time.sleep(120)
    return fixed()


def broken():
    raise ValueError("this model is broken")


def leaves():
    raise SystemExit(0)


def nothing():
    return None


class Raising(nn.Module):
    def forward(self, x):
        raise RuntimeError("no forward today")


def loader():
    """Batches for a repair of `Net`."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(10)]


BROKEN = [3]
TENSOR = torch.zeros(4, 3, 12, 12)


def labelled():
    """Pairs of inputs and labels."""
    return [(torch.randn(4, 3, 12, 12), torch.randint(10, (4,))) for _ in range(3)]


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def width(model):
    """A score: the width of the first layer."""
    return model.conv1.out_channels


def size(model):
    """A score: the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def exported():
    """The module of a program that `torch.export.load` read, as a module of the user's own may make it."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net().eval(), (torch.randn(2, 3, 8, 8),)), buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()
