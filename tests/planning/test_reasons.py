"""The reasons why channels stay that a request asks for: the true cause, with its numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


def reasons(model: nn.Module, x: Tensor, **request: Any) -> tuple[str, ...]:
    return fxprune.analyze(model.eval(), x, path="eager").plan(**request).reasons


class Choice(nn.Module):
    """The two largest of three scores, and the rows of a table that they choose."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.table = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[self.scores(x).topk(2, -1).indices].sum(1)


class Tied(nn.Module):
    """Both parts of a dimension have one width; the width of the first comes out even."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.up, self.down = 2, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).split([self.width, self.width], -1)
        return self.down(torch.cat([a.relu(), b.tanh()], -1))


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))


def test_rounding_is_the_reason_only_where_it_leaves_all_groups_whole() -> None:
    assert reasons(two_layers(), torch.randn(2, 4), ratio=0.1) == (
        'rounding leaves every group whole: the largest has 6 channels ("0"), ratio 0.1, round_to 1',
    )


def test_the_largest_group_is_one_that_was_asked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    (reason,) = reasons(model, torch.randn(2, 4), ratio={"2": 0.1})
    assert '5 channels ("2")' in reason


def test_a_choice_of_positions_is_the_reason_why_nothing_goes() -> None:
    (reason,) = reasons(Choice(), torch.randn(2, 4), ratio=0.7)
    assert reason == '"table" in dimension 0 keeps 1 more of its 3 slots: the model chooses 2 of its slots (topk)'


def test_a_tie_is_the_reason_why_nothing_goes() -> None:
    """One channel of four was chosen, and the two parts cannot differ."""
    (reason,) = reasons(Tied(), torch.randn(2, 4), ratio=0.3)
    assert reason.startswith("width is one number for several widths: they keep as many channels (split in the model (")
    assert "needs 1" in reason
    assert "needs 2" in reason
    assert reason.endswith('); pass prefer="graph"'), "one ratio gives all widths the same"


@pytest.mark.parametrize("request_", [{"ratio": {"*": 0.3}}, {"ratio": 0.3, "counts": {"up": 3}}])
def test_equal_counts_are_the_next_step_where_counts_were_given(request_: dict[str, Any]) -> None:
    (reason,) = reasons(Tied(), torch.randn(2, 4), **request_)
    assert reason.endswith('); give them equal counts, or pass prefer="graph"')


def test_masks_keep_widths_equal_that_one_setting_counts() -> None:
    plan = fxprune.analyze(Tied().eval(), torch.randn(2, 4), path="eager").plan(
        masks={"up": torch.tensor([False, True, True, True])}
    )
    assert not plan
    assert "width is one number for several widths" in plan.reasons[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ignore": "*"}, "the only group is ignored"),
        ({"ratio": {"0": 0.5}, "ignore": "*"}, "the only group is ignored"),
        ({"ratio": 0.0}, "the ratio is 0 for every group that can lose channels"),
    ],
)
def test_a_ratio_that_is_meant_for_no_group(options: dict[str, Any], reason: str) -> None:
    assert reasons(two_layers(), torch.randn(2, 4), **{"ratio": 0.5, **options}) == (reason,)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"0": 0.5}, "the only group with a ratio is ignored"),
        ({"0": 0.5, "1": 0.5}, "all 2 groups with a ratio are ignored"),
        (0.5, "all 3 groups are ignored"),
    ],
)
def test_the_groups_that_a_ratio_is_meant_for_are_counted(asked: Any, reason: str) -> None:
    three = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 5), nn.Linear(5, 7), nn.Linear(7, 3))
    assert reasons(three, torch.randn(2, 4), ratio=asked, ignore="*") == (reason,)


class Normed(nn.Module):
    """Two groups that change the statistics of a norm, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)) for _ in range(2))
        self.mid, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(x + self.one(x) + self.two(x)).relu())


@pytest.mark.parametrize(
    ("options", "names", "more"),
    [
        (
            {"exact": True},
            '2 groups stay whole, since a statistic would change ("one.0", "two.0")',
            ", without exact=True",
        ),
        ({}, '2 groups stay whole, since a statistic would change ("one.0", "two.0")', ""),
        ({"ignore": "one.0"}, '1 group stays whole, since a statistic would change ("two.0")', ""),
        ({"ratio": {"mid": 0.5, "two.0": 0.5}}, '1 group stays whole, since a statistic would change ("two.0")', ""),
    ],
)
def test_folding_names_all_groups_that_stay_for_their_statistics(options: Any, names: str, more: str) -> None:
    asked = {"ratio": 0.5, "bias": "fold", **options}
    plan = fxprune.analyze(Normed().eval(), torch.randn(2, 4)).plan(**asked)
    assert plan.reasons == (f'{names}: bias="fold" takes exact groups alone; pass bias="prune"{more}',)
    assert "mid.weight" in plan.removed
    assert fxprune.record(fxprune.transform(Normed().eval(), torch.randn(2, 4), **asked)).path == "eager"


@pytest.mark.parametrize(("options", "more"), [({}, ""), ({"exact": True}, ", without exact=True")])
def test_folding_of_inexact_groups_alone_names_folding(options: Any, more: str) -> None:
    net, asked = Normed().eval(), {"ratio": {"one.0": 0.5, "two.0": 0.5}, "bias": "fold", **options}
    (reason,) = fxprune.analyze(net, torch.randn(2, 4)).plan(**asked).reasons
    by = f'bias="fold" takes exact groups alone; pass bias="prune"{more}'
    assert reason == f"all 2 groups with a ratio are inexact ({by})"
    (counted,) = fxprune.analyze(net, torch.randn(2, 4)).plan(counts={"one.0": 4}, bias="fold", **options).reasons
    assert f"a statistic would change ({by})" in counted


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (two_layers, "2", "output of the model"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)),
            "1",
            "whole rows",
        ),
    ],
)
def test_masked_channels_stay_for_a_reason_that_is_theirs(model: Any, layer: str, reason: str) -> None:
    net = model()
    x = torch.randn(2, 3, 5, 5) if isinstance(net[0], nn.Conv2d) else torch.randn(2, 4)
    outputs = net.get_submodule(layer).weight.shape[0]
    (found,) = reasons(net, x, masks={layer: torch.arange(outputs) > 0})
    assert found.startswith(f'"{layer}": 1 masked channel stays (0): ')
    assert reason in found


class OfHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))


SEVERAL = '"q" means 2 groups, q:heads and q:head width; "q:heads" means one, "q:*" all'
ASK = " Write the one that is meant, and this warning is gone"


def told_of(analysis: fxprune.Analysis, **choices: Any) -> tuple[tuple[str, ...], list[str]]:
    """The reasons of a plan, and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reasons = analysis.plan(**choices).reasons
    return reasons, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("option", "value"), [("ratio", 0.5), ("counts", 2)])
def test_a_name_of_several_groups_says_that_all_are_meant(option: str, value: float) -> None:
    analysis = fxprune.analyze(OfHeads().eval(), torch.randn(2, 5, 16))
    told = f"{option}: {SEVERAL}"
    assert told_of(analysis, **{option: {"q": value}}) == ((told,), [f"{told}.{ASK}"])
    other = told.replace('"q"', '"k"')
    assert told_of(analysis, **{option: {"k": value}}) == ((other,), [f"{other}.{ASK}"])
    quiet: tuple[dict[str, float], ...] = (
        {"q:heads": value},
        {"q": value, "q:heads": 1 if option == "counts" else 0.25},
        {"q:*": value},
    )
    for values in quiet:
        assert told_of(analysis, **{option: values}) == ((), [])


def test_the_reasons_say_that_all_groups_of_an_ignored_name_are_meant() -> None:
    analysis = fxprune.analyze(nn.Sequential(OfHeads(), nn.Linear(16, 4)).eval(), torch.randn(2, 5, 16))
    told = f"ignore: {SEVERAL}".replace("q:", "0.q:").replace('"q"', '"0.q"')
    assert told_of(analysis, ratio=0.5, ignore=["0.q"]) == ((told,), [])
    for ignore in ("0.q:*", "0.q:heads", ["0.q", "0.q:heads"], "0.out", ["0"], nn.Linear):
        reasons, _ = told_of(analysis, ratio={"0.out": 0.5}, ignore=ignore)
        assert not [why for why in reasons if why.startswith("ignore")], ignore


class Shared(nn.Module):
    """Two queries share a key: its heads are two groups, which have one name."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k))
        k = k[:, :, None].expand(-1, -1, 2, -1, -1).reshape(q.shape)
        y = nn.functional.scaled_dot_product_attention(q, k, k)
        return self.out(y.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("pattern", ["q", "q:heads"])
def test_groups_of_one_name_and_kind_are_told_apart_by_their_keys(pattern: str) -> None:
    analysis = fxprune.analyze(Shared().eval(), torch.randn(2, 5, 16))
    (told,), warned = told_of(analysis, ratio={pattern: 0.5})
    keys = [group.key if group.kind == "heads" else f"{group.name}:{group.kind}" for group in analysis.groups]
    keys = [key for key in keys if key.startswith(pattern)]
    assert len({*keys}) == len(keys) > 1
    every = "q:*" if pattern == "q" else "q:heads*"
    means = f'"{pattern}" means {len(keys)} groups, {" and ".join(keys)}'
    assert told == f'ratio: {means}; "{keys[0]}" means one, "{every}" all'
    assert warned == ([f"{told}.{ASK}"] if pattern == "q" else [])  # of one kind, the share is that of the layer
    assert told_of(analysis, counts={pattern: 1})[1] == [f"{told}.{ASK}".replace("ratio", "counts")]
    assert told_of(analysis, ratio={every: 0.5}) == ((), [])
    assert not analysis.plan(ratio={keys[0]: 0.5}).reasons
