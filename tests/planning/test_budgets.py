"""Budgets are met by the model that is returned, and nearly used up."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.planning.budgets import budgets_of


class Residual(nn.Module):
    """Convolutions with a residual stream and a head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.outer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = torch.relu(self.stem(x))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(width: int = 24) -> Residual:
    torch.manual_seed(0)
    return Residual(width).eval()


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize(
    "keep",
    [{"macs": 0.5}, {"params": 0.3}, {"bytes": 0.2}, {"macs": 0.7, "params": 0.4}, {"macs": 1.0}, {"params": "40k"}],
)
def test_a_budget_is_met_and_used_up_by_the_model_that_is_returned(keep: dict[str, Any], scope: str) -> None:
    model = net(64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(model, X, keep=keep, scope=scope)
    whole, made = fxprune.cost(model, X), fxprune.cost(small, X)
    shares = []
    for key, value in keep.items():
        limit = getattr(whole, key) * value if isinstance(value, float) else 40_000
        assert getattr(made, key) <= limit
        shares.append(getattr(made, key) / limit)
    assert max(shares) >= 0.98  # the widths are small: one channel is up to two hundredths


def test_a_plan_for_a_budget_holds_what_the_analysis_counts() -> None:
    analysis = fxprune.analyze(net(), X)
    plan = analysis.plan(keep={"macs": 0.4}, round_to=4)
    found = analysis.cost(plan)
    assert found.macs is not None
    assert found.macs <= 0.4 * (analysis.cost().macs or 0)
    small = fxprune.transform(net(), X, plan=plan)
    assert fxprune.cost(small, X).macs == found.macs
    assert small.inner.out_channels % 4 == small.stem.out_channels % 4 == 0


@pytest.mark.parametrize(
    ("keep", "counts"),
    [
        ({"macs": 0.5}, {"0": 16}),
        ({"params": 5000}, None),
        ({"macs": "0.2M"}, None),
        ({"macs": 0.45, "bytes": 0.5}, None),
    ],
)
def test_what_fills_a_budget_of_narrow_layers_leaves_their_shares_even(keep: Any, counts: Any) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
    last = [nn.Conv2d(24, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    small = fxprune.transform(nn.Sequential(first, second, *last).eval(), X[:1], keep=keep, counts=counts)
    widths = ((small[0], 16), (small[1], 24), (small[2], 32))
    shares = [layer.out_channels / width for layer, width in widths[1 if counts else 0 :]]
    assert max(shares) - min(shares) < 0.2


def test_counts_fix_their_groups_alone_and_within_a_budget() -> None:
    small = fxprune.transform(net(), X, counts={"inner": 17})
    assert (small.inner.out_channels, small.stem.out_channels) == (17, 24)
    small = fxprune.transform(net(), X, keep={"macs": 0.5}, counts={"inner": 40})
    assert small.inner.out_channels == 40
    assert small.stem.out_channels < 24
    small = fxprune.transform(net(), X, ratio=0.5, counts={"inner": 40})
    assert (small.inner.out_channels, small.stem.out_channels) == (40, 12)


def test_no_group_loses_more_than_it_may() -> None:
    with pytest.warns(fxprune.BudgetMissedWarning, match="macs stay, the budget is"):
        small = fxprune.transform(net(), X, keep={"macs": 0.001})
    assert (small.stem.out_channels, small.inner.out_channels) == (3, 5)  # nine tenths go
    with pytest.warns(fxprune.BudgetMissedWarning, match="every group has lost the most that it may"):
        small = fxprune.transform(net(), X, keep={"macs": 0.001}, min_channels=6)
    assert (small.stem.out_channels, small.inner.out_channels) == (6, 6)
    with pytest.warns(fxprune.BudgetMissedWarning):
        small = fxprune.transform(net(), X, keep={"macs": 0.001}, max_ratio=0.5)
    assert (small.stem.out_channels, small.inner.out_channels) == (12, 24)


def test_a_budget_counts_what_a_path_holds() -> None:
    class Holding(Residual):
        """Its forward reads the width of the stem in a way that no attribute can follow."""

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x)).view(len(x), 24, 8, 8)
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Holding().eval()
    small = fxprune.transform(model, X, keep={"macs": 0.5}, prefer="class")
    assert isinstance(small, Holding)
    share = (fxprune.cost(small, X).macs or 0) / (fxprune.cost(model, X).macs or 1)
    assert 0.48 < share <= 0.5
    assert small.stem.out_channels == 24


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep": {"macs": 0.0}}, "share must be in"),
    ({"keep": {"macs": 1.5}}, "share must be in"),
    ({"keep": {"macs": True}}, "a share, an integer or a text"),
    ({"keep": {"macs": 1}}, "1 is no budget"),
    ({"keep": {"macs": 50}}, 'write 0.5 for a share, or "50 macs" for so many'),
    ({"keep": {"params": "80"}}, 'write 0.8 for a share, or "80 params" for so many'),
    ({"keep": {"macs": -5}}, "-5 is below 1"),
    ({"keep": {"macs": float("nan")}}, "nan of the model cannot be kept"),
    ({"keep": {"macs": [0.5]}}, "it is of the type list"),
    ({"keep": {"latency": 5}}, "whether it is in seconds"),
    ({"keep": {"latency": "5 kg"}}, "no number with such a unit"),
    ({"keep": {"bytes": "0.2 B"}}, "is less than 1"),
    ({"keep": {"macs": "0.5"}}, "a share is a number"),
    ({"keep": {"macs": 0.5}, "bias": "fold"}, "do not go together"),
    ({"keep": {"mac": 0.5}}, "no such budget"),
    ({"keep": {"FLOPs": 0.5}}, 'did you mean "macs"'),
    ({"keep": {}}, "keep must name"),
    ({"keep": {"bytes": "many"}}, "the text is no figure"),
    ({"keep": {"params": 10**9}}, "above the model"),
    ({"keep": {"macs": 0.5}, "ratio": 0.5}, "exactly one of"),
    ({"keep": {"macs": 0.5}, "scope": "globl"}, "no scope"),
    ({"keep": {"macs": 0.5}, "min_channels": 0}, "min_channels"),
    ({"keep": {"macs": 0.5}, "max_ratio": 0.0}, "max_ratio"),
    ({"counts": {"inner": 0}}, "at least 1"),
    ({"counts": {"inner": 49}}, "fewer channels"),
    ({"counts": {"nowhere": 4}}, "nowhere"),
]


@pytest.mark.parametrize(("options", "text"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(fxprune.PlanError, match=text) as raised:
        fxprune.transform(net(), X, **options)
    if set(options) == {"keep"} and options["keep"]:
        assert all((raised.value.at, raised.value.why, raised.value.do))


class Grid(nn.Module):
    """A convolution with groups: its widths are blocks times block widths, so that steps are large."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.split, self.head = nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        return self.head(torch.relu(self.split(torch.relu(self.inner(torch.relu(self.stem(x)))))))


@pytest.mark.parametrize("key", ["macs", "params"])
def test_what_is_left_of_a_budget_is_used_where_steps_are_large(key: str) -> None:
    torch.manual_seed(0)
    analysis = fxprune.analyze(Grid().eval(), X)
    sizes = [range(1, group.size + 1) for group in analysis.groups]
    plans = [analysis.plan(counts=dict(enumerate(kept))) for kept in itertools.product(*sizes)]
    reachable = np.array([getattr(analysis.cost(plan), key) for plan in plans])
    for share, scope in itertools.product((0.9, 0.8, 0.65, 0.5, 0.3), ("local", "global")):
        plan, limit = analysis.plan(keep={key: share}, scope=scope), share * getattr(analysis.cost(), key)
        assert 0.95 * reachable[reachable <= limit].max() <= getattr(analysis.cost(plan), key) <= limit
        assert plan == analysis.plan(keep={key: share}, scope=scope)


@pytest.mark.parametrize(
    ("text", "figure"),
    [("1KiB", 1024), ("1.5 KiB", 1536), ("1 kB", 1000), ("2Ki", 2048), ("1e3", 1000), ("1.5e3 bytes", 1500)],
)
def test_units_are_powers_of_1000_and_with_an_i_of_1024(text: str, figure: int) -> None:
    (budget,) = budgets_of({"bytes": 10**6}, {"bytes": text})
    assert budget.limit == figure


LIMITED: list[tuple[dict[str, Any], str]] = [
    ({"round_to": 16}, "round_to=16 (2 groups)"),
    ({"min_channels": 20}, "min_channels=20 (2 groups)"),
    ({"max_ratio": 0.25}, "max_ratio=0.25 (2 groups)"),
    ({"round_to": 16, "max_ratio": 0.67}, "round_to=16 (1 group), max_ratio=0.67 (1 group)"),
    ({}, "max_ratio=0.9 (2 groups)"),
]


@pytest.mark.parametrize(("options", "text"), LIMITED)
def test_a_budget_that_is_missed_names_the_limits_that_decide(options: dict[str, Any], text: str) -> None:
    (reason,) = fxprune.analyze(net(), X).plan(keep={"macs": 0.001}, **options).reasons
    assert reason.startswith("the budget is not met: ")
    assert f"every group has lost the most that it may: {text}" in reason
    assert reason.endswith(". Raise the budget, or loosen what is named here")


class TwoResults(nn.Module):
    """Returns wide features beside a narrow result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.head = nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Vectors to vectors."""
        wide = self.wide(self.first(x))
        return {"wide": wide, "y": self.head(wide)}


def test_a_budget_that_is_missed_names_the_locks_that_hold_most() -> None:
    analysis = fxprune.analyze(TwoResults(), torch.randn(2, 8))
    (reason,) = analysis.plan(keep={"params": 0.2}, max_ratio=1.0).reasons
    held = "; held: output in the model (%output): output of the model: holds wide.weight[0], wide.bias[0], head.weight"
    assert f"may: one channel stays (1 group){held}" in reason
    assert "388 of 397 params that stay (if a part of the result may shrink, pass outputs= without it)" in reason
    assert "meets a fixed dimension" not in reason  # the 8 inputs of one channel
    small = fxprune.analyze(TwoResults(), torch.randn(2, 8), outputs=["y"])
    (reason,) = small.plan(keep={"params": 0.01}, max_ratio=1.0).reasons
    assert "outputs=" not in reason


def test_a_missed_budget_is_told_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small = fxprune.transform(net(), X, keep={"macs": 0.5}, min_channels=48)
    told = {warning.category: str(warning.message) for warning in caught}
    assert told[fxprune.BudgetMissedWarning] == fxprune.record(small).reasons[0]
    assert told[fxprune.NothingRemovedWarning] == "nothing was removed: the budget is not met"


def test_a_budget_of_the_whole_model_removes_nothing_and_says_why() -> None:
    with pytest.warns(fxprune.NothingRemovedWarning, match=r"within the budget as it is \(macs=1.0\)"):
        fxprune.transform(net(), X, keep={"macs": 1.0})


class Unequal(nn.Module):
    """A narrow embedding before a wide recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 8), nn.LSTM(8, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x))[0])


@pytest.mark.parametrize("share", [0.85, 0.82, 0.8, 0.78, 0.75, 0.5])
def test_no_narrow_group_is_crushed_to_come_nearer_to_a_budget(share: float) -> None:
    torch.manual_seed(0)
    small = fxprune.transform(Unequal(), torch.zeros(2, 7, dtype=torch.long), keep={"params": share}, verify=False)
    narrow, wide = small.embedding.embedding_dim / 8, small.layer.hidden_size / 16
    assert abs(narrow - wide) <= 0.4
    assert narrow >= 0.5
