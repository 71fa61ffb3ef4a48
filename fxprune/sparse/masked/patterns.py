"""Masks made from patterns and from graphs, and graphs made from masks.

A mask says which inputs a layer connects with which outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxprune.arguments import checks_arguments, checks_names
from fxprune.errors import PlanError, nearest
from fxprune.given_seeds import generator_of

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped]

Node = Hashable


@checks_arguments("seed", "generator")
def random_mask(
    out_features: int,
    in_features: int,
    *,
    fan_in: int,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns a mask, bool [out_features, in_features], that connects every output with exactly `fan_in` inputs.

    All sets of inputs are equally likely. `seed` or `generator` makes the mask repeatable; without them the global
    generator of torch is used.

    >>> random_mask(4, 6, fan_in=2, seed=0).sum(1)
    tensor([2, 2, 2, 2])
    """
    _check_sizes(out_features=out_features, in_features=in_features, fan_in=fan_in)
    if fan_in > in_features:
        raise PlanError(
            f"fan_in must be at most in_features, {in_features}, not {fan_in}",
            at="random_mask",
            why="an output reads each input once at most",
            do="pass fewer, or in_features for a dense layer",
        )
    if seed is not None and generator is not None:
        raise PlanError(
            "seed and generator are two ways to say the same",
            at="random_mask",
            why="each of them says where the random numbers begin",
            do="pass one of them",
        )
    if seed is not None:
        generator = generator_of(seed)
    device = None if generator is None else generator.device
    # float64: two equal numbers are practically impossible
    drawn = torch.rand(out_features, in_features, generator=generator, dtype=torch.float64, device=device)
    mask = torch.zeros(out_features, in_features, dtype=torch.bool, device=device)
    return mask.scatter_(1, drawn.topk(fan_in, 1).indices, True)


@checks_names
def banded_mask(out_features: int, in_features: int, width: int) -> Tensor:
    """mask[o, i] = |i - c(o)| <= width + 1/2: every output reads the inputs at most `width` positions from c(o).

    c(o) = (o + 1/2) in_features / out_features - 1/2 is the position of an output among the inputs. In a square mask
    c(o) = o, and 2 width + 1 diagonals are connected. Every output has a connection. With many more inputs than
    outputs, a narrow band leaves some inputs without a connection.

    >>> banded_mask(4, 4, 1).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    _check_sizes(out_features=out_features, in_features=in_features)
    _check_sizes(0, width=width)
    o = (2 * torch.arange(out_features) + 1)[:, None] * in_features
    i = (2 * torch.arange(in_features) + 1)[None] * out_features
    return (i - o).abs() <= (2 * width + 1) * out_features


@checks_names
def block_mask(out_features: int, in_features: int, blocks: int) -> Tensor:
    """mask[o, i] = (o and i are in the same of `blocks` equal parts), as in a convolution with groups.

    >>> block_mask(4, 2, 2).int().tolist()
    [[1, 0], [1, 0], [0, 1], [0, 1]]
    """
    _check_sizes(out_features=out_features, in_features=in_features, blocks=blocks)
    for name, size in (("out_features", out_features), ("in_features", in_features)):
        if size % blocks:
            raise PlanError(
                f"{blocks} blocks do not divide {name}, {size}",
                at="block_mask",
                why="all blocks have the same size",
                do="use a divisor of both",
            )
    same = torch.eye(blocks, dtype=torch.bool)
    return same.repeat_interleave(out_features // blocks, 0).repeat_interleave(in_features // blocks, 1)


@checks_names
def mask_from_graph(
    graph: nx.Graph, inputs: Sequence[Node] | None = None, outputs: Sequence[Node] | None = None
) -> Tensor:
    """Returns the mask, bool [outputs, inputs], of a bipartite graph: mask[o, i] = there is an edge from i to o.

    Args:
        graph: a graph of networkx, only read; in a directed graph, edges go from inputs to outputs.
        inputs, outputs: together all nodes of the graph, each in the order of the features. Without them, the node
            attribute `bipartite` says which is which (0 = input, 1 = output), in the order of the graph.

    Raises `PlanError` for a graph that is not bipartite in this way.

    >>> import networkx as nx
    >>> graph = nx.DiGraph([("a", "y"), ("b", "x"), ("b", "y")])
    >>> mask_from_graph(graph, ["a", "b"], ["x", "y"]).int().tolist()
    [[0, 1], [1, 1]]
    """
    import networkx as nx

    if not isinstance(graph, nx.Graph):
        raise PlanError(
            "not a graph of networkx",
            at=f"mask_from_graph({type(graph).__name__})",
            why=f"it is {type(graph).__name__}",
            do="for an array use mask_from_adjacency",
        )
    if (inputs is None) != (outputs is None):
        raise PlanError(
            "inputs and outputs belong together",
            at="mask_from_graph",
            why="one of them is missing",
            do="pass both or none",
        )
    if inputs is None or outputs is None:
        inputs, outputs = _sides(graph)
    row, column = _positions(graph, outputs, "outputs"), _positions(graph, inputs, "inputs")
    _check_sides(graph, row, column)
    mask = torch.zeros(len(row), len(column), dtype=torch.bool)
    ends: list[tuple[int, int]] = []
    for a, b in graph.edges():
        if not graph.is_directed() and a in row:
            a, b = b, a
        if a not in column or b not in row:
            raise _wrong_edge(a, b, a in row, b in row)
        ends.append((row[b], column[a]))
    if not ends:
        raise PlanError(
            "the graph has no edge",
            at="mask_from_graph",
            why="a mask that connects nothing is of no use",
            do="add edges from inputs to outputs",
        )
    where = torch.tensor(ends)
    mask[where[:, 0], where[:, 1]] = True
    return mask


def _check_sides(graph: Any, row: Mapping[Node, int], column: Mapping[Node, int]) -> None:
    """Raises `PlanError` unless each node of a graph is an output, with a row, or an input, with a column."""
    if both := row.keys() & column.keys():
        raise PlanError(
            f"node {_first(both)!r} is an input and an output",
            at="mask_from_graph",
            why="a layer reads its inputs and writes other outputs",
            do="give every node one side",
        )
    if others := [n for n in graph if n not in row and n not in column]:
        raise PlanError(
            f"node {others[0]!r} is neither an input nor an output",
            at="mask_from_graph",
            why="the two sides do not list it",
            do="list it, or take a subgraph",
        )


@checks_names
def mask_from_adjacency(
    adjacency: Any, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None
) -> Tensor:
    """Returns the mask, bool [outputs, inputs], of an adjacency array, in which connections lead from row to column.

    Args:
        adjacency: an array, tensor or nested list; an element that is not 0 is a connection. Of shape [inputs,
            outputs], as `networkx.bipartite.biadjacency_matrix` makes it, or [nodes, nodes] for all nodes of a graph.
        inputs, outputs: needed for shape [nodes, nodes]: the numbers of the nodes that are inputs and outputs, each
            node once, in the order of the features. An undirected graph may list each connection in both directions.

    Raises `PlanError` for a square adjacency without `inputs` and `outputs` that can be read in both ways.

    >>> mask_from_adjacency([[1, 0, 1], [0, 1, 0]]).int().tolist()
    [[1, 0], [0, 1], [1, 0]]
    >>> whole = [[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    >>> mask_from_adjacency(whole, inputs=[0, 1], outputs=[2, 3]).int().tolist()
    [[1, 1], [0, 1]]
    """
    array = _array(adjacency)
    if (inputs is None) != (outputs is None):
        raise PlanError(
            "inputs and outputs belong together",
            at="mask_from_adjacency",
            why="one of them is missing",
            do="pass both or none",
        )
    if inputs is not None and outputs is not None:
        if array.shape[0] != array.shape[1]:
            raise PlanError(
                "an adjacency of all nodes is square",
                at="mask_from_adjacency",
                why=f"its shape is {array.shape}",
                do="leave inputs and outputs out",
            )
        sides = np.array([*inputs, *outputs])
        if sides.dtype.kind != "i" or sorted(sides.tolist()) != list(range(len(array))):
            raise PlanError(
                "inputs and outputs must be all nodes, each once",
                at="mask_from_adjacency",
                why=f"they are {sorted(sides.tolist(), key=str)}, the nodes are 0 to {len(array) - 1}",
                do="list the number of each node in one of them",
            )
        i, o = list(inputs), list(outputs)
        for a, b, sentence in ((i, i, "two inputs"), (o, o, "two outputs")):
            if (found := np.argwhere(array[np.ix_(a, b)])).size:
                raise _not_bipartite(f"nodes {a[found[0][0]]} and {b[found[0][1]]} are {sentence}")
        forward, back = array[np.ix_(i, o)], array[np.ix_(o, i)]
        if (found := np.argwhere(back & ~forward.T)).size:
            raise _not_bipartite(f"it leads from output {o[found[0][0]]} to input {i[found[0][1]]}")
        array = forward
    elif array.any() and array.shape[0] == array.shape[1] and _links_two_sides(array):
        raise PlanError(
            "a square adjacency can be read in two ways",
            at="mask_from_adjacency",
            why=f"as [inputs, outputs], and as all {len(array)} nodes of both layers, which connect two sides alone",
            do="pass inputs= and outputs= for all nodes; or pass the mask [outputs, inputs] itself, the transpose",
        )
    if not array.any():
        raise PlanError(
            "the adjacency has no connection",
            at="mask_from_adjacency",
            why="a mask that connects nothing is of no use",
            do="set the entry [input, output] of each connection to 1",
        )
    return torch.from_numpy(np.ascontiguousarray(array.T))


def graph_of(weight: Tensor, mask: Tensor, groups: int = 1) -> nx.DiGraph:
    """Returns a bipartite graph with a node per input and output, and an edge with its weight per connection.

    Nodes are ("in", i) with `bipartite` 0 and ("out", o) with `bipartite` 1. weight, mask: [out, in / groups] or
    [out, in / groups, h, w]; an edge of a convolution has the L2 norm of its kernel. The outputs
    and inputs are divided into `groups` equal parts; an output of group g reads the in / groups inputs of part g.
    """
    import networkx as nx

    out, per_group = weight.shape[:2]
    connected = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    values = weight.detach() * mask
    values = values.flatten(2).norm(dim=2) if values.ndim > 2 else values
    o, i = (part.tolist() for part in connected.nonzero(as_tuple=True))
    first = [row // (out // groups) * per_group for row in o]
    weights = values[connected].tolist()
    graph = nx.DiGraph()
    graph.add_nodes_from((("in", k) for k in range(per_group * groups)), bipartite=0)
    graph.add_nodes_from((("out", k) for k in range(out)), bipartite=1)
    edges = zip(o, i, first, weights, strict=True)
    graph.add_weighted_edges_from((("in", start + k), ("out", row), w) for row, k, start, w in edges)
    return graph


def _check_sizes(least: int = 1, /, **sizes: Any) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise PlanError(
                f"{name} must be an integer of at least {least}, not {size!r}",
                at=f"{name}={size!r}",
                why="it is a size of the mask",
                do=f"pass {name}={max(least, 1)} or more",
            )


def _sides(graph: nx.Graph) -> tuple[list[Node], list[Node]]:
    sides: tuple[list[Node], list[Node]] = [], []
    for node, side in graph.nodes(data="bipartite"):
        if isinstance(side, bool) or side not in (0, 1):
            raise PlanError(
                f"node {node!r} is neither an input nor an output",
                at="mask_from_graph",
                why=f"its attribute `bipartite` is {side!r}; 0 is an input, 1 an output",
                do="pass inputs and outputs, or set the attribute",
            )
        sides[side].append(node)
    return sides


def _positions(graph: nx.Graph, nodes: Iterable[Node], side: str) -> dict[Node, int]:
    listed = list(nodes)
    positions = {node: k for k, node in enumerate(listed)}
    if missing := [n for n in listed if n not in graph]:
        names = [n for n in graph if isinstance(n, str)]
        hint = nearest(missing[0], names) if isinstance(missing[0], str) and names else f"it has {len(graph)} nodes"
        raise PlanError(
            f"{side} name a node that the graph lacks: {missing[0]!r}", at=side, why=hint, do="list nodes of the graph"
        )
    if len(positions) < len(listed):
        twice = next(n for k, n in enumerate(listed) if positions[n] != k)
        raise PlanError(
            f"{side} name node {twice!r} twice",
            at=side,
            why="a node is one row or one column of the mask",
            do="list every node once",
        )
    if not listed:
        raise PlanError(f"there are no {side}", at=side, why="a layer has at least one", do="list its nodes")
    return positions


def _wrong_edge(a: Node, b: Node, from_output: bool, to_output: bool) -> PlanError:
    if from_output == to_output:
        return _not_bipartite(f"{a!r} and {b!r} are two {'outputs' if from_output else 'inputs'}")
    return _not_bipartite(f"it leads from output {a!r} to input {b!r}")


def _not_bipartite(why: str) -> PlanError:
    return PlanError(
        "an edge does not lead from an input to an output", at="the edges", why=why, do="turn it around or leave it out"
    )


def _array(adjacency: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if isinstance(adjacency, Tensor):
        adjacency = adjacency.detach().cpu().float().numpy()
    try:
        array = np.asarray(adjacency)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise PlanError(
            "an adjacency must be a matrix of numbers",
            at="mask_from_adjacency",
            why=f"it is {type(adjacency).__name__} with shape {array.shape} and type {array.dtype}",
            do="pass [inputs, outputs]; for a graph of networkx use mask_from_graph",
        )
    return np.asarray(array != 0)


def _links_two_sides(array: np.ndarray[Any, np.dtype[np.bool_]]) -> bool:
    """True if a square adjacency of all nodes leads from some nodes to others alone, or both ways between two sides."""
    if not (array.any(1) & array.any(0)).any():
        return True
    if not np.array_equal(array, array.T):
        return False
    side = np.zeros(len(array), int)  # -1 and 1: the two sides, 0: not seen yet
    for start in range(len(array)):
        reached = np.array([start])
        side[start] = side[start] or 1
        while len(reached):
            near = np.flatnonzero(array[reached].any(0))
            if (side[near] == side[reached[0]]).any():
                return False
            reached, before = near[side[near] == 0], side[reached[0]]
            side[reached] = -before
    return True


def _first(nodes: Iterable[Node]) -> Node:
    return min(nodes, key=str)
