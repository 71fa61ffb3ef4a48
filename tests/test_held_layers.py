"""A reason for channels that stay because of a number in code names their layers, and what to do."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli.wording import spoken
from fxprune.report import record_data
from fxprune.report.html import content


class Streaming(nn.Module):
    """Its state has a width that is written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gru, self.last = nn.Linear(5, 12), nn.GRU(12, 14, batch_first=True), nn.Linear(14, 3)

    def state(self, count: int) -> torch.Tensor:
        return torch.zeros(1, count, 14)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gru(torch.relu(self.stem(x)), self.state(len(x)))[0])


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = fxprune.transform(Streaming().eval(), torch.randn(2, 7, 5), ratio=0.5, path="eager")
    return made


def test_the_reason_names_the_layers_and_the_next_step(small: nn.Module) -> None:
    (reason,) = (text for text in fxprune.record(small).reasons if text.startswith("channels stay at"))
    assert "aten::zeros gives shape (1, 2, 14) in the small model, and has to give (1, 2, 7)" in reason
    assert "; these channels are those of gru, last. Read that size from an attribute of the module" in reason
    assert reason.endswith('or from a tensor, or pass `prefer="graph"`')
    assert spoken(reason).endswith("pass `--prefer graph`")
    assert small.gru.hidden_size == 14
    assert small.stem.out_features == 6


def test_the_page_of_the_record_lists_these_channels_among_the_locked(small: nn.Module) -> None:
    analysis, known = fxprune.analyze(Streaming().eval(), torch.randn(2, 7, 5), path="eager"), fxprune.record(small)
    assert {("gru.weight_hh_l0", 0), ("last.weight", 1)} <= {*known.held[0].slots}
    page = content.of_record(known, record_data(known), analysis, ())
    assert (len(analysis.groups), [group["name"] for group in page["groups"]]) == (2, ["stem"])
    (lock,) = (lock for lock in page["locked"] if "gives shape (1, 2, 14)" in lock["why"])
    assert "gru.weight_hh_l0" in {held["parameter"] for held in lock["holds"]}
    states = {node["id"]: node["state"] for node in page["layers"]}
    assert (states["stem"], states["gru"]) == ("free", "inputs")


def test_pickles_have_the_channels_that_stay(small: nn.Module) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert fxprune.record(small).held
    assert fxprune.record(again).held == fxprune.record(small).held


@pytest.mark.filterwarnings("ignore::fxprune.FixedSizesWarning")
def test_the_next_step_helps(small: nn.Module) -> None:
    class Told(Streaming):
        def state(self, count: int) -> torch.Tensor:
            return torch.zeros(1, count, self.gru.hidden_size)

    x = torch.randn(2, 7, 5)
    by_attribute = fxprune.transform(Told().eval(), x, ratio=0.5, path="eager")
    assert by_attribute.gru.hidden_size == 7
    by_graph = fxprune.transform(Streaming().eval(), x, ratio=0.5, prefer="graph")
    assert fxprune.record(by_graph).after["gru.weight_hh_l0"] == (21, 7)


def test_a_record_of_two_steps_has_what_either_of_them_holds() -> None:
    x = torch.randn(2, 7, 5)
    once = fxprune.transform(Streaming().eval(), x, ratio=0.25, path="eager", ignore=["gru"])
    twice = fxprune.transform(once, x, ratio=0.5, path="eager")
    first, second = fxprune.record(once), fxprune.record(twice)
    assert (first.held, len(second.held)) == ((), 1)
    assert first.then(second).held == second.held


@pytest.mark.filterwarnings("ignore::fxprune.FixedSizesWarning")
def test_what_a_later_step_removes_is_no_longer_held(small: nn.Module) -> None:
    graph = fxprune.transform(small, torch.randn(2, 7, 5), ratio=0.5, prefer="graph")
    first, second = fxprune.record(small), fxprune.record(graph)
    assert 0 in second.removed["gru.weight_hh_l0"]
    assert first.held
    assert first.then(second).held == ()
