"""Masks by pattern and as graphs, each against a definition written out entry by entry."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import torch

from fxprune.errors import PlanError
from fxprune.sparse import (
    MaskedConv2d,
    MaskedLinear,
    banded_mask,
    block_mask,
    mask_from_adjacency,
    mask_from_graph,
    random_mask,
)

SIZES = [(1, 1), (5, 5), (3, 11), (11, 3), (4, 6), (7, 1), (1, 7)]


@pytest.mark.parametrize(("out", "into"), SIZES)
def test_random_masks_have_exactly_that_fan_in(out, into):
    for fan_in in {1, into // 2 or 1, into}:
        mask = random_mask(out, into, fan_in=fan_in)
        assert (mask.shape, mask.dtype) == ((out, into), torch.bool)
        assert mask.sum(1).tolist() == [fan_in] * out


def test_random_masks_are_uniform_and_repeatable():
    mask = random_mask(20_000, 5, fan_in=2, seed=1)
    pairs = torch.tensor([[a, b] for a in range(5) for b in range(a + 1, 5)])
    counts = torch.stack([(mask[:, a] & mask[:, b]).sum() for a, b in pairs.tolist()]) / 20_000
    assert (counts - 0.1).abs().max() < 0.012  # 5.6 standard deviations
    assert torch.equal(mask, random_mask(20_000, 5, fan_in=2, seed=1))
    assert not torch.equal(mask, random_mask(20_000, 5, fan_in=2, seed=2))
    first, second = (random_mask(9, 9, fan_in=3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    drawn = random_mask(9, 9, fan_in=3)
    assert not torch.equal(drawn, random_mask(9, 9, fan_in=3))


@pytest.mark.parametrize(("out", "into"), SIZES)
@pytest.mark.parametrize("width", [0, 1, 2, 20])
def test_banded_masks_equal_their_definition(out, into, width):
    mask = banded_mask(out, into, width)
    for o in range(out):
        place = (o + Fraction(1, 2)) * into / out - Fraction(1, 2)
        for i in range(into):
            assert bool(mask[o, i]) == (abs(i - place) <= width + Fraction(1, 2))
    assert mask.any(1).all()
    if out == into:
        assert np.array_equal(mask.numpy(), np.tri(out, out, width, bool) & np.tri(out, out, width, bool).T)


@pytest.mark.parametrize(("out", "into", "blocks"), [(6, 4, 2), (6, 9, 3), (5, 5, 5), (3, 4, 1)])
def test_block_masks_equal_their_definition(out, into, blocks):
    mask = block_mask(out, into, blocks)
    parts = [torch.ones(out // blocks, into // blocks)] * blocks
    assert torch.equal(mask, torch.block_diag(*parts).bool())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: random_mask(4, 3, fan_in=4), "fan_in must be at most in_features, 3, not 4"),
        (lambda: random_mask(4, 3, fan_in=0), "fan_in must be an integer of at least 1, not 0"),
        (lambda: random_mask(4, 3, fan_in=1.5), "fan_in must be an integer of at least 1, not 1.5"),
        (lambda: random_mask(0, 3, fan_in=1), "out_features must be an integer of at least 1, not 0"),
        (lambda: random_mask(4, 3, fan_in=1, seed=0, generator=torch.Generator()), "two ways to say the same"),
        (lambda: banded_mask(4, 3, -1), "width must be an integer of at least 0, not -1"),
        (lambda: banded_mask(4, True, 1), "in_features must be an integer of at least 1, not True"),
        (lambda: block_mask(4, 6, 4), "4 blocks do not divide in_features, 6"),
        (lambda: block_mask(5, 6, 3), "3 blocks do not divide out_features, 5"),
    ],
)
def test_impossible_patterns_are_refused(make, sentence):
    with pytest.raises(PlanError, match=sentence):
        make()


# -- graphs -------------------------------------------------------------------------------------------------


def shuffled(nodes):
    return [nodes[k] for k in torch.randperm(len(nodes)).tolist()]


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiDiGraph])
def test_a_graph_becomes_a_mask(kind):
    inputs, outputs = [f"i{k}" for k in range(6)], [("o", k) for k in range(4)]
    edges = [(i, o) for i in inputs for o in outputs if torch.rand(()) < 0.5] or [(inputs[0], outputs[0])]
    graph = kind()
    graph.add_nodes_from(shuffled([*inputs, *outputs]))
    graph.add_edges_from(shuffled(edges))
    if kind is nx.Graph:
        graph.remove_edge(*edges[0])
        graph.add_edge(*edges[0][::-1])  # without direction
    mask = mask_from_graph(graph, inputs, outputs)
    assert mask.tolist() == [[(i, o) in edges for i in inputs] for o in outputs]
    array = nx.to_numpy_array(nx.Graph(graph), nodelist=[*inputs, *outputs])
    assert torch.equal(mask, mask_from_adjacency(array, range(6), range(6, 10)))
    assert torch.equal(mask, mask_from_adjacency(torch.from_numpy(array[:6, 6:])))


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(range(2), range(2, 5)), ([3, 0], [4, 1, 2]), ([4], range(4))])
def test_an_adjacency_of_all_nodes_is_never_taken_for_one_of_two_layers(inputs, outputs, directed):
    array = np.zeros((5, 5), int)
    array[np.ix_(list(inputs), list(outputs))] = 1
    array[list(inputs)[-1], next(iter(outputs))] = len(inputs) == 1  # one edge fewer
    array = array if directed else array + array.T
    with pytest.raises(
        PlanError, match=r"a square adjacency can be read in two ways\n  at .*\n.*all 5 nodes.*\n.*inputs= and"
    ):
        mask_from_adjacency(array)
    assert mask_from_adjacency(array, inputs, outputs).shape == (len(outputs), len(inputs))


def test_a_square_adjacency_of_two_layers_is_one():
    for array in (
        [[1, 0], [0, 1]],
        [[1, 1], [0, 0]],
        [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
    ):
        assert mask_from_adjacency(array).tolist() == (np.array(array).T != 0).tolist()


def test_the_attribute_tells_the_sides_apart():
    graph = nx.Graph()
    graph.add_nodes_from("yx", bipartite=1)
    graph.add_nodes_from("ab", bipartite=0)
    graph.add_edge("a", "x")
    assert mask_from_graph(graph).tolist() == [[False, False], [True, False]]


def test_a_mask_equals_the_matrix_that_networkx_makes():
    graph = nx.bipartite.random_graph(5, 7, 0.4, seed=3)
    rows = [n for n, side in graph.nodes(data="bipartite") if side == 0]
    columns = [n for n, side in graph.nodes(data="bipartite") if side == 1]
    matrix = np.array([[graph.has_edge(i, o) for o in columns] for i in rows])
    assert matrix.any()
    assert np.array_equal(mask_from_graph(graph).numpy(), matrix.T)


def test_a_layer_as_a_graph_and_back():
    mask = random_mask(4, 6, fan_in=2, seed=0)
    layer = MaskedLinear(6, 4, mask)
    layer.weight.data[1, mask[1].nonzero()[0]] = 0  # a connection whose weight is zero is still one
    graph = layer.to_graph()
    assert nx.is_bipartite(graph)
    assert graph.is_directed()
    assert {n for n, side in graph.nodes(data="bipartite") if side == 0} == {("in", k) for k in range(6)}
    for (_, i), (_, o), weight in graph.edges(data="weight"):
        assert weight == layer.weight[o, i].item()
    assert graph.number_of_edges() == 8
    assert torch.equal(mask_from_graph(graph), mask)


def test_a_convolution_as_a_graph():
    layer = MaskedConv2d(4, 6, 3, random_mask(6, 2, fan_in=1, seed=0), groups=2)
    graph = layer.to_graph()
    dense = mask_from_graph(graph)
    for o in range(6):
        for i in range(4):
            inside = i // 2 == o // 3
            connected = inside and bool(layer.mask[o, i % 2])
            assert bool(dense[o, i]) == connected
            if connected:
                norm = layer.weight[o, i % 2].square().sum().sqrt().item()
                assert graph["in", i]["out", o]["weight"] == pytest.approx(norm)


def bipartite(*edges):
    return nx.DiGraph(list(edges))


@pytest.mark.parametrize(
    ("make", "sentences"),
    [
        (lambda: mask_from_graph([[1]]), ["not a graph of networkx", "it is list", "mask_from_adjacency"]),
        (lambda: mask_from_graph(bipartite("ax"), ["a"]), ["inputs and outputs belong together"]),
        (lambda: mask_from_graph(bipartite("ax")), ["node 'a' is neither an input nor an output", "is None"]),
        (
            lambda: mask_from_graph(bipartite(("stem", "x")), ["sten"], ["x"]),
            ["inputs name a node that the graph lacks: 'sten'", 'did you mean "stem"?'],
        ),
        (lambda: mask_from_graph(bipartite("ax"), ["a", "a"], ["x"]), ["inputs name node 'a' twice"]),
        (lambda: mask_from_graph(bipartite("ax"), ["a", "x"], ["x"]), ["node 'x' is an input and an output"]),
        (lambda: mask_from_graph(bipartite("ax", "by"), ["a"], ["x", "y"]), ["node 'b' is neither"]),
        (lambda: mask_from_graph(bipartite("ax"), [], ["a", "x"]), ["there are no inputs"]),
        (lambda: mask_from_graph(bipartite("ax", "ab"), ["a", "b"], ["x"]), ["'a' and 'b' are two inputs"]),
        (lambda: mask_from_graph(bipartite("ax", "xy"), ["a"], ["x", "y"]), ["'x' and 'y' are two outputs"]),
        (lambda: mask_from_graph(bipartite("xa"), ["a"], ["x"]), ["from output 'x' to input 'a'"]),
        (lambda: mask_from_graph(nx.empty_graph(2), [0], [1]), ["the graph has no edge"]),
        (lambda: mask_from_adjacency([[0, 0]]), ["the adjacency has no connection"]),
        (lambda: mask_from_adjacency([1, 0]), ["must be a matrix of numbers", "shape (2,)"]),
        (lambda: mask_from_adjacency([[1], [0, 1]]), ["must be a matrix of numbers"]),
        (lambda: mask_from_adjacency(nx.path_graph(2)), ["must be a matrix of numbers", "it is Graph"]),
        (lambda: mask_from_adjacency([[1, 0]], [0], [1]), ["is square", "(1, 2)"]),
        (lambda: mask_from_adjacency(np.eye(2), [0], [0]), ["all nodes, each once", "0 to 1"]),
        (lambda: mask_from_adjacency(np.eye(2), ["a"], ["b"]), ["all nodes, each once"]),
        (lambda: mask_from_adjacency(np.ones((2, 2)), [0], [1]), ["nodes 0 and 0 are two inputs"]),
        (lambda: mask_from_adjacency([[0, 0], [1, 0]], [0], [1]), ["from output 1 to input 0"]),
    ],
)
def test_graphs_that_are_no_layer_are_refused(make, sentences):
    with pytest.raises(PlanError) as raised:
        make()
    for sentence in sentences:
        assert sentence in str(raised.value)
