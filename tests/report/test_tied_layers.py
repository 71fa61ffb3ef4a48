"""Layers that share a parameter are shown with it, each in its role."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from fxprune.costs import cost_of
from fxprune.report.data import analysis_data, layers_of
from fxprune.report.html.content import _of_findings


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        made: Tensor = self.head(h + self.down(self.up(h).relu()))
        return made


def analysis() -> fxprune.Analysis:
    return fxprune.analyze(Words().eval(), torch.arange(5)[None])


def test_the_layers_of_a_report_have_the_shapes_of_their_tied_weights() -> None:
    found = analysis()
    layers = {row.name: row for row in layers_of(found, cost_of(found))}
    assert layers["words"].shapes == layers["head"].shapes == {"weight": (11, 8)}
    assert (layers["words"].params, layers["head"].params) == (88, 0)


def test_a_graph_says_what_a_tied_layer_reads() -> None:
    nodes = analysis().to_networkx("flow").nodes
    (group,) = nodes["words"]["groups"]
    assert nodes["words"]["makes"] == (group,)
    assert nodes["head"]["reads"] == (group,)
    assert nodes["head"]["makes"] == ()


def test_the_page_shows_a_tied_layer_by_what_it_reads() -> None:
    found = analysis()
    nodes = {node["id"]: node for node in _of_findings(found, analysis_data(found))["layers"]}
    assert [tensor["name"] for tensor in nodes["head"]["tensors"]] == ["head.weight"]
    assert (nodes["words"]["state"], nodes["head"]["state"]) == ("free", "inputs")
    assert (nodes["words"]["width"]["before"], nodes["head"]["width"]["before"]) == (8, 11)


class WithABuffer(Words):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(8))

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.head(self.words(ids) * self.scale)
        return made


def test_a_buffer_of_the_model_counts_no_outputs_of_it() -> None:
    found = fxprune.analyze(WithABuffer().eval(), torch.arange(5)[None])
    (node,) = [node for node in _of_findings(found, analysis_data(found))["layers"] if "scale" in str(node["tensors"])]
    assert node["width"] is None
