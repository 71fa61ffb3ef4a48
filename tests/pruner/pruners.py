"""Helpers of the tests of pruners: a pruner of given outputs, and the function that the pruned model should compute."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.pruner import BasePruner
from tests.support import randomise


class ListPruner(BasePruner):
    """Prunes the outputs that the setting "prune" lists."""

    def update_mask(self, layer, **kwargs):
        layer.parametrizations.weight[0].pruned_outputs.update(kwargs["prune"])


def prepared(model, chosen, *, also_prune_bias=True):
    """A model whose layers {name or pair: indices} were pruned in one step, and its pruner."""
    pruner = ListPruner(also_prune_bias=also_prune_bias)
    pruner.prepare(model, [{"name": name, "prune": indices} for name, indices in chosen.items()])
    pruner.step()
    return pruner


def zeroed(tensor, indices, dim=0):
    """A copy of a tensor with these slots zero, one by one."""
    made = tensor.detach().clone()
    for i in indices:
        made.select(dim, i).zero_()
    return made


class Residual(nn.Module):
    """Two convolutions and a sum, as in a ResNet."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def small_resnet(seed=0):
    """Stem, two residual blocks, head, in float64, evaluation mode and with random statistics."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.stem, net.norm, net.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    net.block1, net.block2 = Residual(8), Residual(8)
    net.pool, net.flat, net.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return randomise(net, seed).double().eval()
