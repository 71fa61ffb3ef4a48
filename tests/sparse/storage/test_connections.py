"""Sparse layers from positions and values, without a dense weight, also where a dense one would not fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fxprune.errors import PlanError
from fxprune.sparse import SparseLinear
from fxprune.sparse.storage.connections import connections
from fxprune.sparse.storage.matrices import Spec


def positions(out, into, count, seed=0):
    """Different positions in random order, [2, count]."""
    flat = torch.from_numpy(np.random.default_rng(seed).choice(out * into, count, replace=False))
    return torch.stack((flat // into, flat % into))


@pytest.mark.parametrize("layout", ["csr", "coo"])
@pytest.mark.parametrize("kind", ["int64", "int32", "numpy"])
def test_it_computes_and_trains_as_the_dense_layer_with_these_weights(layout, kind):
    where, values = positions(7, 5, 12), torch.randn(12, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64)
    given = where.numpy() if kind == "numpy" else where.to(getattr(torch, kind))
    layer = SparseLinear.from_indices(5, 7, given, values, bias=bias, layout=layout)
    dense = nn.Linear(5, 7, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.zero_()
        for o, i, value in zip(*where.tolist(), values.tolist(), strict=True):
            dense.weight[o, i] = value
        dense.bias.copy_(bias)
    assert torch.equal(layer.dense_weight(), dense.weight)
    mask = dense.weight.detach() != 0
    optimizers = [torch.optim.AdamW(m.parameters(), 0.1, weight_decay=0.1) for m in (layer, dense)]
    for _ in range(4):
        x = torch.randn(3, 2, 5, dtype=torch.float64)
        for model, optimizer in zip((layer, dense), optimizers, strict=True):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            if model is dense:
                dense.weight.grad *= mask
            optimizer.step()
    assert (layer.dense_weight() - dense.weight).abs().max() < 1e-12
    assert (layer(x) - dense(x)).abs().max() < 1e-12
    other = SparseLinear.from_indices(5, 7, positions(7, 5, 3), layout=layout, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(other)(x), layer(x))


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_drawn_values_fit_the_connections_of_their_output(layout):
    where = torch.tensor([[0] * 400 + [1] * 4, [*range(400), *range(4)]])
    layer = SparseLinear.from_indices(400, 3, where, layout=layout)
    bounds = torch.tensor([1 / 20] * 400 + [1 / 2] * 4)
    assert (layer.values.abs() <= bounds).all()
    assert layer.values[:400].abs().max() > 0.9 / 20
    assert layer.values[400:].abs().max() > 1 / 20
    assert layer.bias[0].abs() <= 1 / 20
    assert layer.bias.shape == (3,)
    assert SparseLinear.from_indices(400, 3, where, bias=False).bias is None
    assert SparseLinear.from_indices(400, 3, where, dtype=torch.float64).values.dtype is torch.float64


def test_sorted_positions_are_not_sorted_again_and_huge_ones_are():
    where = torch.tensor([[5, 0, 5, 2], [1, 9, 0, 3]])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for columns in (10, 2**62):  # 2^64 elements: a row and a column do not fit into one int64
        (found,), sorted_values = connections(Spec("coo", (8, columns)), where, values)
        assert found.tolist() == [[0, 2, 5, 5], [9, 3, 0, 1]]
        assert sorted_values.tolist() == [2.0, 4.0, 3.0, 1.0]
    (found,), same = connections(Spec("coo", (10, 10)), found, sorted_values)
    assert torch.equal(same, sorted_values)
    assert same.data_ptr() != sorted_values.data_ptr(), "a copy"


class Sizes(TorchDispatchMode):
    """The bytes of the largest tensor that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return made


def test_a_million_connections_between_a_hundred_thousand_nodes_train_without_a_dense_weight():
    """The dense weight would take 40 GB. Nothing is larger than an int64 for every position."""
    size, count = 100_000, 1_000_000
    key = torch.randperm(size * 10)[:count] * 9_973 + 11  # different positions
    where = torch.stack((key // size, key % size))
    x, goal = torch.randn(2, size), torch.randn(2, size)
    with Sizes() as sizes:
        layer = SparseLinear.from_indices(size, size, where)
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = (layer(x) - goal).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[1] < losses[0]
    assert sizes.largest <= 16 * count
    assert layer.values.grad.shape == (count,)
    held = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    assert held == 8 * count + 4 * (size + 1) + 4 * size, "as the documentation says"


@pytest.mark.parametrize(
    ("attempt", "sentences"),
    [
        (lambda: SparseLinear.from_indices(3, 2, torch.tensor([[0, 2], [0, 1]])), ["no output 2", "0 to 1"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.tensor([[0, 1], [-1, 1]])), ["no input -1", "0 to 2"]),
        (
            lambda: SparseLinear.from_indices(3, 2, torch.tensor([[1, 0, 1], [2, 0, 2]])),
            ["twice", "input 2 to output 1"],
        ),
        (lambda: SparseLinear.from_indices(3, 2, torch.tensor([0, 1])), ["integers [2, connections]", "shape (2,)"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 1)), ["integers [2, connections]", "float32"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 0).long()), ["no connection"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 1).long(), torch.ones(2)), ["do not fit", "shape (2,)"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 1).long(), torch.ones(1).long()), ["int64"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 1).long(), layout="bsr"), ["csr or coo", "'bsr'"]),
        (lambda: SparseLinear.from_indices(3, 2, torch.ones(2, 1).long(), bias=torch.ones(3)), ["bias", "(3,)"]),
    ],
)
def test_connections_that_cannot_be_are_refused(attempt, sentences):
    with pytest.raises(PlanError) as raised:
        attempt()
    for sentence in sentences:
        assert sentence in str(raised.value)


def test_values_that_are_not_numbers_are_refused() -> None:
    indices = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(PlanError, match=r"the values hold NaN\n  at .*\n  why .*\n  do "):
        SparseLinear.from_indices(2, 2, indices, torch.tensor([1.0, float("nan")]))
