"""Groups at the same place of repeated blocks keep equally many channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.planning.uniform import EqualWidths


class Mlp(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, hidden), nn.Linear(8, hidden), nn.Linear(hidden, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors to vectors."""
        return self.down(self.up(x) * self.gate(x).sigmoid())


class Block(nn.Module):
    """A residual block: a feed-forward layer and another one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp, self.extra = Mlp(hidden), nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors to vectors."""
        x = x + self.mlp(x)
        return x + self.extra(x)


class Stack(nn.Module):
    """A stack of blocks, with a head."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Block, hidden))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors to logits."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Shown(Stack):
    """A stack that gives out the hidden features of its second block too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors to logits and features."""
        return super().forward(x), self.layers[1].mlp.up(x)


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def stack(*hidden: int, kind: type[Stack] = Stack) -> Stack:
    torch.manual_seed(0)
    model = kind(*(hidden or (16, 16, 16))).eval()
    for number, layer in enumerate(model.layers):  # blocks whose channels count unlike much
        layer.mlp.up.weight.data *= 1 + 3 * number
    return model


def widths(model: Stack, x: Tensor = X, **options: Any) -> tuple[list[int], list[int], fxprune.Record]:
    """The hidden widths of both parts of each block, after a transform that is right."""
    small = fxprune.transform(model, x, **options)
    record = fxprune.record(small)
    assert record.error is not None
    assert record.error < 1e-9
    return (
        [layer.mlp.up.out_features for layer in small.layers],
        [layer.extra[0].out_features for layer in small.layers],
        record,
    )


@pytest.mark.parametrize("scope", ["global", "isomorphic", "local"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_budget_is_spread_evenly_over_the_blocks_and_still_met(scope: str, round_to: int) -> None:
    model, options = stack(), {"keep": {"macs": 0.6}, "scope": scope, "round_to": round_to}
    free, _, _ = widths(model, **options)
    hidden, extra, record = widths(model, uniform="layers.*.mlp", **options)
    assert len({*hidden}) == 1
    assert hidden[0] % round_to == 0
    assert record.cost is not None
    before, after = record.cost
    assert before.macs is not None
    assert after.macs is not None
    assert after.macs <= 0.6 * before.macs
    if scope == "global":
        assert len({*free}) > 1
    both, extra, _ = widths(model, uniform=["layers.*"], **options)
    assert len({*both}) == len({*extra}) == 1


def test_shares_that_differ_become_their_mean() -> None:
    model = stack()
    ratio = {"layers.0.mlp": 0.5, "layers.1.mlp": 0.25, "layers.2.mlp": 0.25, "layers.0.extra": 0.5}
    assert widths(model, ratio=ratio)[:2] == ([8, 12, 12], [6, 12, 12])
    assert widths(model, ratio=ratio, uniform="layers.*.mlp")[:2] == ([11, 11, 11], [6, 12, 12])
    assert widths(model, ratio=ratio, uniform=Mlp, round_to=4)[0] == [12, 12, 12]


def test_blocks_of_unlike_sizes_get_the_width_that_all_can_have() -> None:
    assert widths(stack(16, 10, 20), ratio=0.5, uniform="layers.*.mlp")[0] == [8, 8, 8]
    assert widths(stack(16, 4, 20), ratio=0.25, uniform="layers.*.mlp")[0] == [4, 4, 4]


def test_a_count_for_one_block_holds_for_all() -> None:
    model = stack()
    assert widths(model, counts={"layers.1.mlp.up": 5}, uniform="layers.*.mlp")[0] == [5, 5, 5]
    assert widths(model, counts={"layers.1.mlp.up": 5}, uniform="layers.*.mlp", ratio=0.25)[:2] == ([5] * 3, [9] * 3)
    hidden, extra, _ = widths(model, counts={"layers.1.mlp": 5}, uniform="layers.*", keep={"macs": 0.5})
    assert hidden == [5, 5, 5]
    assert len({*extra}) == 1


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"keep": {"macs": 0.75}}])
def test_a_block_that_stays_holds_the_others(options: dict[str, Any]) -> None:
    hidden, extra, record = widths(stack(), ignore="layers.1.mlp.up", uniform="layers.*.mlp", **options)
    assert hidden == [16, 16, 16]
    assert max(extra) < 12
    assert [reason for reason in record.reasons if reason.startswith("uniform")] == [
        'uniform: "layers.0.mlp.up" and 2 more keep all channels, as "layers.1.mlp.up" does: ignore names it'
    ]
    hidden, _, record = widths(stack(kind=Shown), uniform="layers.*.mlp", **options)
    assert hidden == [16, 16, 16]
    assert 'uniform: "layers.1.mlp.gate" has no channels that can go, so those of the others stay' in record.reasons
    hidden, _, record = widths(stack(), uniform="layers.*.mlp", ratio={"layers.0": 0.5, "layers.1": 0.25})
    assert hidden == [16, 16, 16]
    assert any('as "layers.2.mlp.up" does: nothing asks' in reason for reason in record.reasons)


class Choosing(Stack):
    """Takes the twelve largest hidden features of its second block."""

    def forward(self, x: Tensor) -> Tensor:
        """Vectors to logits."""
        mlp = self.layers[1].mlp
        return super().forward(x + (mlp.up(x) * mlp.gate(x).sigmoid()).topk(12).values.mean(-1, keepdim=True))


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"counts": {"layers.0.mlp.up": 11}}, {"keep": {"macs": 0.6}}])
def test_channels_that_one_block_needs_stay_in_all(options: dict[str, Any]) -> None:
    hidden, _, record = widths(stack(kind=Choosing), uniform="layers.*.mlp", **options)
    assert hidden == [12, 12, 12]
    assert "chooses 12 of its slots" in record.reasons[0]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"uniform": "layers.0.mlp"}, "must name several blocks"),
    ({"uniform": "layer.*"}, "names nothing"),
    ({"uniform": ["layers.*", "nowhere"]}, "names nothing"),
    ({"uniform": 3.5}, "uniform cannot be"),
    ({"uniform": "layers.*.extra.1"}, "names no group"),
    ({"uniform": "layers.*", "counts": {"layers.0.mlp": 4, "layers.1.mlp": 5}}, "counts for several"),
    ({"uniform": "layers.*", "counts": {"layers.0.mlp": 4}, "ignore": "layers.1.mlp.up"}, "asks for 4 channels"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(fxprune.PlanError, match=text):
        fxprune.transform(stack(), X, ratio=0.5, **options)


def test_a_set_of_groups_of_different_sizes_keeps_the_same_share() -> None:
    equal = EqualWidths(((0, 1),), {0: 48, 1: 4}, {0: 12, 1: 1})
    assert equal.merged({0: 20, 1: 1}, 1) == {0: 12}  # 28 of 48 and 3 of 4 are 2.33 and 3 of 4 steps, so 3 stay
    assert equal.merged({0: 20, 1: 3}, 8) == {0: 24}  # a multiple of 8 is 2 steps of 12
    with pytest.raises(fxprune.PlanError, match="fit for multiples of 12"):
        equal.with_fixed({0: 20}, fxprune.analyze(Stack(6, 6).eval(), torch.randn(1, 8)).groups, {})
