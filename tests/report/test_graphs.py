"""Graphs of layers and of groups: edges are real dependences, and the text for Graphviz has the same graph."""

from __future__ import annotations

import re
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputError
from fxprune.report.graphs import dot
from tests.forks import ended_forks
from tests.test_golden import NETWORKS


class Written(nn.Module):
    """Writes into a part of a tensor, in place, with branches, a raw parameter, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.twice = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.shift, self.lonely = nn.Parameter(torch.zeros(4)), nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        made = torch.zeros(2, 2, 4)
        made[:, 0] = self.a(x) * mask
        made[:, 1] = self.b(x)
        y = self.c(made.relu_()).add_(self.shift)
        return self.twice(torch.tanh(self.twice(y)))


class NoTrace(Written):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, mask) if len([*x.shape]) == 2 else x


EDGES = {
    *(("a", "c"), ("b", "c"), ("c", "twice"), ("shift", "twice")),
}


@pytest.mark.parametrize("make", [Written, NoTrace])
@pytest.mark.parametrize("path", ["eager", "export", "hooks"])
def test_the_graph_of_layers_is_the_same_on_every_path(make: type[nn.Module], path: str) -> None:
    analysis = fxprune.analyze(make().eval(), (torch.randn(2, 3), torch.ones(2, 4)), path=path)
    made = analysis.to_networkx()
    assert set(made.edges) == EDGES
    assert set(made) == {"a", "b", "c", "shift", "twice"}
    assert made.nodes["shift"]["kind"] == "parameter"
    assert made.nodes["a"]["kind"] == "layer"


def test_the_flow_has_inputs_outputs_and_joins() -> None:
    analysis = fxprune.analyze(Written().eval(), (torch.randn(2, 3), torch.ones(2, 4)), path="eager")
    made = analysis.to_networkx(kind="flow")
    kinds = nx.get_node_attributes(made, "kind")
    assert {n for n, kind in kinds.items() if kind in ("input", "output")} == {"input:x", "input:mask", "output"}
    assert {n for n, kind in kinds.items() if kind == "join"} == {":mul", ":copy", ":add"}
    assert nx.has_path(made, "input:mask", "output")
    assert set(made.predecessors(":mul")) == {"a", "input:mask"}
    assert not list(made.predecessors("shift"))  # a parameter is no layer: nothing runs into it
    assert set(made.predecessors(":add")) == {"c", "shift"}
    assert made.edges["shift", ":add"]["shape"] == (4,)
    assert ("input:x", "a") in made.edges
    assert ("twice", "output") in made.edges
    assert made.edges["input:x", "a"]["shape"] == (2, 3)


def depends(model: nn.Module, x: Tensor, before: str, after: str) -> bool:
    """True if the input of one layer changes with the output of the other, when the model runs."""
    seen: list[Tensor] = []
    moved = False

    def shift(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return output + torch.randn_like(output) if moved else None

    handles = [
        model.get_submodule(before).register_forward_hook(shift),
        model.get_submodule(after).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())),
    ]
    with torch.no_grad():
        model(x)
        calls, moved = len(seen), True
        model(x)
    for handle in handles:
        handle.remove()
    return any(not torch.equal(one, other) for one, other in zip(seen[:calls], seen[calls:], strict=True))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("TiedWeights", "SharedModule")])
def test_layers_are_connected_exactly_where_their_numbers_depend_on_each_other(name: str) -> None:
    """The output of one layer changes the input of another exactly if the graph leads from the one to the other."""
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():  # so that relu lets everything pass, and tanh does not saturate
        for tensor in model.parameters():
            tensor.abs_().mul_(0.1).add_(0.01)
    made = fxprune.analyze(model, x).to_networkx()
    owners = {p.rpartition(".")[0] for p, _ in model.named_parameters()}
    assert set(made) == owners
    for before in owners:
        for after in owners - {before}:
            assert nx.has_path(made, before, after) == depends(model, x.abs(), before, after), (before, after)


def test_attributes_of_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    made = fxprune.analyze(net, torch.randn(2, 3, 5, 5)).to_networkx()
    assert dict(made.nodes["0"]) == {
        "kind": "layer",
        "type": "Conv2d",
        "params": 8 * 27 + 8,
        "macs": 2 * 8 * 27 * 9,
        "shapes": {"weight": (8, 3, 3, 3), "bias": (8,)},
        "groups": ("0:channels",),
        "makes": ("0:channels",),
        "reads": (),
        "output": (2, 8, 3, 3),
    }
    assert (made.nodes["1"]["reads"], made.nodes["1"]["makes"]) == (("0:channels",), ())
    assert (made.nodes["3"]["reads"], made.nodes["3"]["groups"]) == (("0:channels",), ("0:channels",))
    assert dict(made.edges) == {("0", "1"): {"shape": (2, 8, 3, 3)}, ("1", "3"): {"shape": (2, 8, 3, 3)}}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_and_parameters(name: str) -> None:
    """Every member is an edge, with its dimension and role; the graph is bipartite."""
    make, shape = NETWORKS[name]
    analysis = fxprune.analyze(make().eval(), torch.zeros(shape))
    made = analysis.to_networkx(kind="groups")
    sides = nx.get_node_attributes(made, "bipartite")
    assert nx.is_bipartite(made)
    assert [made.nodes[n]["channels"] for n, side in sides.items() if side == 0] == [g.size for g in analysis.groups]
    assert made.number_of_edges() == sum(len(g.members) for g in analysis.groups)
    for group, node in zip(analysis.groups, [n for n, side in sides.items() if side == 0], strict=True):
        edges = {(parameter, dim) for _, parameter, dim in made.edges(node, data="dim")}
        assert edges == {(m.parameter, m.dim) for m in group.members}
    assert {role for *_, role in made.edges(data="role")} <= {"producer", "norm", "consumer", "raw"}


def test_groups_of_the_same_name_are_told_apart() -> None:
    analysis = fxprune.analyze(NETWORKS["ChannelShuffle"][0]().eval(), torch.zeros(2, 3, 4, 5))
    names = [n for n, side in analysis.to_networkx("groups").nodes(data="bipartite") if side == 0]
    assert names == ["first:blocks", "first:block width", "first:block width 2", "second:block width"]


@pytest.mark.parametrize("kind", ["layer", ""])
def test_kinds_that_do_not_exist_are_refused(kind: Any) -> None:
    analysis = fxprune.analyze(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(1, 3))
    for make in (analysis.to_networkx, analysis.to_dot):
        with pytest.raises(InputError, match="there is no graph of kind") as caught:
            make(kind)
        assert "pass one of layers, groups, flow" in str(caught.value)


def parsed(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The nodes and edges of a text for Graphviz, as far as `dot` writes them."""
    quoted = r'"((?:[^"\\]|\\.)*)"'

    def plain(found: str) -> str:
        return re.sub(r"\\(.)", r"\1", found)

    nodes = [plain(m[1]) for m in re.finditer(rf"^  {quoted} \[label={quoted}\]$", text, re.MULTILINE)]
    edge = rf"^  {quoted} (?:->|--) {quoted}(?: \[label={quoted}\])?$"
    return nodes, [(plain(m[1]), plain(m[2])) for m in re.finditer(edge, text, re.MULTILINE)]


@pytest.mark.parametrize("kind", ["layers", "groups", "flow"])
@pytest.mark.parametrize("name", ["Residual", "GroupedConv", "TiedWeights"])
def test_text_for_graphviz_says_the_same(name: str, kind: str) -> None:
    make, shape = NETWORKS[name]
    analysis = fxprune.analyze(make().eval(), torch.zeros(shape))
    text, made = analysis.to_dot(kind), analysis.to_networkx(kind)
    nodes, edges = parsed(text)
    assert nodes == list(made)
    assert edges == [(a, b) for a, b, *_ in made.edges]
    assert len(text.splitlines()) == 4 + len(nodes) + len(edges)
    assert text.startswith("graph {" if kind == "groups" else "digraph {")


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "trailing\\", "line\nbreak", "semi;colon} ->"])
def test_names_are_quoted(name: str) -> None:
    made = nx.DiGraph()
    made.add_edge(name, "other")
    nodes, edges = parsed(dot(made))
    assert nodes == [name.replace("\n", " "), "other"]
    assert edges == [(name.replace("\n", " "), "other")]


def test_importing_the_package_imports_no_drawing() -> None:
    code = "import sys, fxprune, fxprune.plot; print([m for m in ('networkx', 'matplotlib') if m in sys.modules])"
    (done,) = ended_forks([(code, ())])
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
