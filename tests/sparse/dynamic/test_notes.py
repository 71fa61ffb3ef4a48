"""The network and the training loop of the notes on sparse convolutions, with their defaults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from fxprune.sparse import DynamicSparseConv2d, DynamicSparseLinear
from fxprune.sparse.dynamic.selection import counts_of_the_notes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = DynamicSparseConv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = DynamicSparseConv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def test_the_whole_network_trains_and_moves_its_connections():
    net = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(80).view(20, 4) % 10
    images = torch.randn(10, 3, 32, 32)
    trainloader = [(images[picked] + 0.1 * torch.randn(4, 3, 32, 32), picked) for picked in labels]
    losses, masks = [], [net.conv1.mask.clone(), net.conv2.mask.clone()]
    for _ in range(3):
        running_loss = 0.0
        for inputs, picked in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), picked)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        losses.append(running_loss)
        done = net.conv1.progress_connections(), net.conv2.progress_connections()
        for layer, update in zip((net.conv1, net.conv2), done, strict=True):
            assert layer.mask.sum((2, 3)).eq(3).all(), "k2 of every kernel"
            assert update.grown >= layer.mask.shape[:2].numel(), "k2 - k1 of every kernel at least are new"
            assert update.kept + update.grown == layer.mask.sum()
    assert losses[-1] < losses[0]
    assert not torch.equal(net.conv1.mask, masks[0])
    assert not torch.equal(net.conv2.mask, masks[1])
    assert net.conv1.steps == 60


def test_the_numbers_of_the_notes_are_rounded_as_in_the_notes():
    for size in range(1, 200):
        k1, k2 = max(int(0.1 * np.prod([size])), 1), max(int(0.15 * np.prod([size])), 1)
        assert counts_of_the_notes(size) == (k1, k2)
    for kernel in (2, 3, 4, 5, 7, (1, 9), 11):
        layer = DynamicSparseConv2d(2, 3, kernel)
        size = layer.weight[0, 0].numel()
        assert (layer.dims, layer.every, layer.threshold) == ((0, 1), 20, 0.0)
        assert layer._active_counts(0) == counts_of_the_notes(size)
        assert layer.mask.sum((2, 3)).eq(counts_of_the_notes(size)[1]).all()


def test_what_is_said_overrides_the_numbers_of_the_notes():
    assert DynamicSparseConv2d(3, 6, 5, regrow=0.0)._active_counts(0) == (3, 3)
    assert DynamicSparseConv2d(3, 6, 5, dims=()).mask.sum() == int(0.15 * 450)
    assert DynamicSparseConv2d(3, 6, 5, sparsity=0.8).dims == (0,)
    assert DynamicSparseConv2d(40, 6, 1).mask.sum((1, 2, 3)).eq(6).all(), "a kernel of one connection has no choice"
    assert DynamicSparseLinear(40, 3).mask.sum(1).eq(6).all()
    dense = nn.Conv2d(3, 6, 5)
    made = DynamicSparseConv2d.from_dense(dense)
    assert torch.equal(made.weight, dense.weight * made.mask)


def test_one_forward_is_enough_for_an_update():
    x = torch.randn(4, 3, 32, 32)
    layer = DynamicSparseConv2d(3, 6, 5)
    assert layer(x).shape == nn.Conv2d(3, 6, 5)(x).shape
    assert layer.update().sparsity == pytest.approx(0.88)
