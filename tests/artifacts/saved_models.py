"""Models of the files in `saved/`, as they were when the files were written, and how each was pruned."""

from __future__ import annotations

import torch
from torch import nn


class Views(nn.Module):
    """Traced: a number of channels stands in a view of the graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, 3)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu().view(-1, 24))


class Branch(nn.Module):
    """Keeps its class: forward decides by a shape."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        if bool(x.sum() > 1e9):
            return x
        return self.last(self.norm(self.first(x)).relu())


class Leaves(nn.Module):
    """Leaves torch in forward: smaller layers, with hooks."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.first(x).relu()
        return self.last(torch.from_numpy(y.detach().numpy().copy()))


def folded():
    """A bias that is folded into the next layer."""
    return nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 2))


CASES = {
    "fx": (Views, (2, 2, 4, 4), {"ratio": 0.5}),
    "eager": (Branch, (4, 3), {"ratio": 0.5, "path": "eager", "norms": "preserve"}),
    "export": (Views, (2, 2, 4, 4), {"ratio": 0.5, "path": "export"}),
    "hooks": (Leaves, (4, 3), {"ratio": 0.5, "path": "hooks"}),
    "folded": (folded, (4, 3), {"ratio": 0.5, "bias": "fold"}),
}
"""By the name of a file: the model, the shape of its example input, and the options of `transform`."""


def model_and_input(name):
    """The model that was pruned, with its weights, and an input."""
    make, shape, _ = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(shape)
