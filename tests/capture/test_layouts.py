"""Tensors that are not in plain memory: sparse ones are kept as they are, nested ones are named."""

from __future__ import annotations

import dataclasses
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from tests.support import relative_error

X = torch.randn(5, 4).double()
DENSE = torch.tensor([[0, 2, 0, 1, 0], [3, 0, 0, 0, 1], [0, 0, 5, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 7, 0]]).double()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, once in a process: the layout is new
    SPARSE = {"coo": DENSE.to_sparse_coo(), "csr": DENSE.to_sparse_csr(), "csc": DENSE.to_sparse_csc()}


class Graph(nn.Module):
    """A convolution over a graph, whose edges are a sparse matrix."""

    def __init__(self, edges: torch.Tensor | None = None, *, registered: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        if registered:
            self.register_buffer("edges", edges)
        else:
            self.edges = edges

    def forward(self, x: torch.Tensor, edges: torch.Tensor | None = None) -> torch.Tensor:
        edges = self.edges if edges is None else edges
        return self.b(torch.sparse.mm(edges, torch.relu(self.a(x))) + edges @ self.a(x))


@pytest.mark.parametrize("options", [{"path": "eager"}, {"prefer": "graph"}, {"keep": {"macs": 0.5}}], ids=str)
@pytest.mark.parametrize("place", ["buffer", "attribute", "input"])
@pytest.mark.parametrize("layout", SPARSE)
def test_a_sparse_matrix_is_kept_and_the_channels_that_it_mixes_go(layout, place, options):
    edges = SPARSE[layout]
    model = Graph(edges if place != "input" else None, registered=place == "buffer").double()
    inputs = (X, edges) if place == "input" else (X,)
    small = fxprune.transform(model, inputs, **({} if "keep" in options else {"ratio": 0.5}), **options)
    assert small.a.out_features == 4
    assert relative_error(small(*inputs), fxprune.masked(model, fxprune.record(small).removed)(*inputs)) < 1e-12
    if place == "buffer":
        assert small.edges.layout is edges.layout
        file = io.BytesIO()
        torch.save(small, file)
        assert torch.equal(torch.load(io.BytesIO(file.getvalue()), weights_only=False)(X), small(X))


def test_a_sparse_matrix_with_the_width_of_the_model_holds_it():
    class Mixed(Graph):
        def forward(self, x):
            return self.b(torch.sparse.mm(self.edges, torch.relu(self.a(x)).t()).t())

    model = Mixed(torch.eye(8).double().to_sparse_csr()).double()
    with pytest.warns(fxprune.NothingRemovedWarning, match="nothing was removed"):
        small = fxprune.transform(model, X, ratio=0.5, path="eager")
    assert small.a.out_features == 8


def test_a_sparse_matrix_is_no_obstacle_to_a_repair_and_to_folding():
    model = Graph(SPARSE["csr"]).double()
    small = fxprune.transform(model, X, ratio=0.5, repair=[torch.randn(5, 4).double() for _ in range(4)])
    assert small.a.out_features == 4
    with torch.no_grad():
        model.a.weight[:3] = 0
        model.a.bias[:3] = 0
    folded = fxprune.transform(model, X, masks="zeros", bias="fold")
    assert folded.a.out_features == 5
    assert relative_error(folded(X), model(X)) < 1e-12


def test_nested_tensors_are_named_with_the_next_step():
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=torch.jagged)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(fxprune.InputError, match=r"nested tensor\n  why  .*torch.jagged.*\n  do .*to_padded_tensor"):
        fxprune.transform(model, nested, ratio=0.5)
    model.register_buffer("words", nested)
    with pytest.raises(fxprune.CaptureError, match=r'"words"\n  why  it is a nested .*\n  do .*to_padded_tensor'):
        fxprune.transform(model, torch.randn(2, 4), ratio=0.5)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor


@dataclasses.dataclass
class Unregistered:
    x: torch.Tensor


class Pair:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Plain:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class OfBatch(nn.Sequential):
    def forward(self, batch):
        return super().forward(batch.x)


torch.export.register_dataclass(Batch)
pytree.register_pytree_node(Pair, lambda pair: ([pair.x], None), lambda parts, _: Pair(*parts))


def of_batch():
    return OfBatch(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("kind", [Batch, Pair])
def test_one_object_that_torch_takes_apart_is_one_argument(kind):
    model = of_batch()
    small = fxprune.transform(model, kind(X), ratio=0.5)
    assert type(small) is OfBatch
    assert small[0].out_features == 4
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert relative_error(small(kind(X)), masked(kind(X))) < 1e-12


@pytest.mark.parametrize(("kind", "advice"), [(Unregistered, "register_dataclass"), (Plain, "register_pytree_node")])
@pytest.mark.parametrize("given", [lambda one: one, lambda one: (one,)], ids=["bare", "in a tuple"])
def test_an_object_whose_tensors_are_not_seen_is_named_with_the_next_step(kind, advice, given):
    with pytest.raises(
        fxprune.InputError, match=rf"{kind.__name__}, whose tensors are not seen\n.*\n  do .*{advice}\("
    ):
        fxprune.transform(of_batch(), given(kind(X)), ratio=0.5)


def test_a_tuple_that_is_one_argument_is_told_to_stand_in_a_tuple():
    class OfPair(nn.Sequential):
        def forward(self, pair):
            return super().forward(pair[0] + pair[1])

    with pytest.raises(fxprune.InputError, match=r"one argument stands in a tuple: \(inputs,\)"):
        fxprune.transform(OfPair(nn.Linear(4, 8), nn.Linear(8, 2)).double(), (X, X), ratio=0.5)
