"""The graphs of `small_graphs.py`, pruned by half: a judge that knows nothing of fxprune finds all results right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.right_or_wrong import SCALES, STATISTICS, counted, elements, slots_missing, slots_of, verdict
from tests.small_graphs import GRAPHS, Graph
from tests.support import relative_error

LOCKED = {
    "sinusoids made in forward": "positions in this dimension are used as numbers",
    "constant made in forward": "meets a fixed dimension",
    "convolution over channels (ECA)": "spatial dimension of a convolution",
}
"""Name of a graph whose channels cannot be removed -> why."""


@pytest.mark.filterwarnings("ignore::fxprune.ClassLostWarning", "ignore::fxprune.FixedSizesWarning")
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_half_of_a_small_graph_computes_what_is_left_of_the_original(graph: Graph):
    model, inputs = graph.build()
    if graph.name in LOCKED:
        with pytest.warns(fxprune.NothingRemovedWarning, match=LOCKED[graph.name]):
            assert elements(fxprune.transform(model, inputs, ratio=0.5)) == elements(model)
        return
    small = fxprune.transform(model, inputs, ratio=0.5, verify=False)
    assert verdict(model, small, inputs, slots_of(model, fxprune.record(small).removed)) == "right"


def test_a_model_in_which_nothing_is_gone_counts_all_its_channels():
    for graph in GRAPHS:
        model, inputs = graph.build()
        assert relative_error(counted(model, inputs, {**STATISTICS, **SCALES}), model(*inputs)) < 1e-12, graph.name


def test_values_that_do_not_occur_any_more_are_the_removed_slots():
    model, inputs = next(graph for graph in GRAPHS if graph.name == "concat of two branches").build()
    small = fxprune.transform(model, inputs, ratio=0.5)
    removed = slots_of(model, fxprune.record(small).removed)
    found = slots_missing(model, small)
    assert set(found) == set(removed)
    for name, slots in found.items():
        assert torch.equal(slots, removed[name]), name


class Broken(nn.Module):
    """A convolution whose small model is wrong in a way of choice."""

    def __init__(self, keep: int, way: str) -> None:
        super().__init__()
        self.a, self.head, self.way = nn.Linear(4, keep), nn.Linear(keep, 3), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        if self.way == "flipped":
            h = h.flip(-1)
        return self.head(h if self.way != "raises" else h.view(-1, 6))[:, : 2 if self.way == "narrow" else 3]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("", "right"),
        ("flipped", "wrong, silently"),
        ("raises", "forward raises"),
        ("narrow", "output shape changed"),
        ("whole", "nothing removed"),
    ],
)
def test_a_verdict_names_what_is_wrong(way: str, expected: str):
    torch.manual_seed(0)
    model, kept = Broken(6, "").double(), [0, 2, 3, 5]
    small = Broken(6 if way == "whole" else 4, way).double()
    if way != "whole":
        with torch.no_grad():
            small.a.weight.copy_(model.a.weight[kept])
            small.a.bias.copy_(model.a.bias[kept])
            small.head.weight.copy_(model.head.weight[:, kept])
            small.head.bias.copy_(model.head.bias)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert verdict(model, small, (x,), slots_missing(model, small)) == expected
