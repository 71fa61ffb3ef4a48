"""scope="search": widths that are measured after the repair, never worse than the even ratio, from a file if killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune._search.allotment import Allotment, MixedScores, Ranking, like
from fxprune.errors import FileError, InputError, PlanError

KEEP = {"macs": 0.5}


def net() -> nn.Sequential:
    """A net whose first width is all needed, while the second one holds each of its values six times."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 6)).eval()
    with torch.no_grad():
        made[0].weight.copy_(torch.eye(10))
        for parameter in (made[2].weight, made[2].bias):
            parameter.copy_(parameter[:4].repeat(6, *[1] * (parameter.ndim - 1)))
        made[2].weight.mul_(2)
    return made


def data(count: int = 10, size: int = 16, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(count * size, 10, generator=torch.Generator().manual_seed(seed)).split(size))


def away(model: nn.Module, small: nn.Module) -> float:
    """The relative squared error on samples that nothing was fitted to."""
    x = torch.cat(data(seed=2))
    with torch.no_grad():
        return float((small(x) - model(x)).square().sum() / model(x).square().sum())


def widths(small: nn.Module) -> tuple[int, int]:
    return small.get_submodule("0").out_features, small.get_submodule("2").out_features


def searched(model: nn.Module, steps: int = 15, **options: Any) -> nn.Module:
    given: dict[str, Any] = {"keep": KEEP, "repair": data(), **options}
    settings = {"steps": steps, **given.pop("search", {})}
    return fxprune.transform(model, torch.randn(2, 10), scope="search", search=settings, **given)


# -- what it finds -----------------------------------------------------------------------------------------------


def test_a_search_finds_the_widths_where_the_even_ratio_is_bad() -> None:
    model = net()
    even = fxprune.transform(model, torch.randn(2, 10), keep=KEEP, repair=data())
    small = searched(model, 15)
    assert fxprune.cost(small, torch.randn(1, 10)).macs <= 0.5 * fxprune.cost(model, torch.randn(1, 10)).macs
    assert widths(small)[0] > widths(even)[0]
    assert away(model, small) < 0.5 * away(model, even)
    record = fxprune.record(small)
    assert record.error is not None
    assert record.error < 1e-9
    assert record.repair is not None
    assert any("the search measured" in reason and "even ratio" in reason for reason in record.reasons)


def test_the_first_step_is_the_even_ratio() -> None:
    model = net()
    even = fxprune.transform(model, torch.randn(2, 10), keep=KEEP)
    assert fxprune.record(searched(model, 1)).removed == fxprune.record(even).removed


def test_the_even_ratio_is_kept_where_nothing_is_better() -> None:
    values = iter(range(10**6))
    model = net()
    even = fxprune.transform(model, torch.randn(2, 10), keep=KEEP)
    small = searched(model, 8, search={"score": lambda small: -next(values)})
    assert fxprune.record(small).removed == fxprune.record(even).removed


def test_the_best_score_is_taken_and_the_least_loss() -> None:
    scores: dict[int, tuple[int, int]] = {}

    def score(small: nn.Module) -> int:
        scores[len(scores)] = widths(small)
        return len(scores)  # the last one is the best

    small = searched(net(), 6, search={"score": score})
    assert widths(small) == scores[len(scores) - 1]

    losses: list[float] = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = F.mse_loss(model(batch[0]), batch[1])
        losses.append(float(made))
        return made

    batches = [(x, net()(x).detach()) for x in data()]
    made = searched(net(), 6, data=batches, repair=True, loss=loss)
    assert "the loss is" in fxprune.record(made).reasons[-1]
    judged = [losses[i : i + 2] for i in range(0, len(losses), 2)]  # two batches of ten judge
    best = min(sum(pair) / 2 for pair in judged)
    assert f"the loss is {best:.4g}" in fxprune.record(made).reasons[-1]


def test_a_search_gives_the_same_by_its_seed_and_leaves_random_numbers_alone() -> None:
    model = net()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fxprune.record(searched(model, 7, seed=3))
    torch.manual_seed(6)
    torch.randn(3)
    second = fxprune.record(searched(model, 7, seed=3))
    assert first.removed == second.removed
    assert first.reasons == second.reasons
    torch.set_rng_state(state)
    fxprune.transform(model, torch.ones(2, 10), keep=KEEP, repair=data(), scope="search", search={"steps": 2})
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_may_be_read_once_and_have_labels() -> None:
    model = net()
    plain = fxprune.record(searched(model, 3)).removed
    labelled = [(x, torch.zeros(16)) for x in data()]
    assert fxprune.record(searched(model, 3, repair=iter(data()))).removed == plain
    assert fxprune.record(searched(model, 3, repair=labelled, repair_inputs=lambda batch: batch[0])).removed == plain
    assert fxprune.record(searched(model, 3, data=iter(labelled), repair=True)).removed == plain


def test_an_analysis_searches_without_analysing_again() -> None:
    model = net()
    analysis = fxprune.analyze(model, torch.randn(2, 10))
    small = analysis.transform(keep=KEEP, scope="search", repair=data(), search={"steps": 3})
    assert fxprune.record(small).removed == fxprune.record(searched(model, 3)).removed


def test_groups_that_thinet_cannot_rank_have_the_other_importance() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 8, batch_first=True)
            self.head = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    model, batches = Net().eval(), list(torch.randn(40, 4, 5).split(4))
    options: dict[str, Any] = {"keep": {"params": 0.5}, "repair": batches, "search": {"steps": 4}}
    small = fxprune.transform(model, batches[0], scope="search", **options)
    assert fxprune.record(small).repair.after < 1


def test_counts_and_ignored_layers_are_kept_within_a_search() -> None:
    small = searched(net(), 4, counts={"0": 9})
    assert widths(small)[0] == 9
    assert widths(searched(net(), 4, ignore="0"))[0] == 10


def test_a_search_says_why_the_class_is_lost() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().view(-1, 16))

    model = Fixed().eval()
    with pytest.warns(fxprune.ClassLostWarning, match="the class would lose"):
        plain = fxprune.transform(model, torch.randn(2, 10), keep=KEEP)
    with pytest.warns(fxprune.ClassLostWarning, match="the class would lose"):
        small = searched(model, 1)
    assert fxprune.record(small).why_not == fxprune.record(plain).why_not


# -- files and interruptions -------------------------------------------------------------------------------------


def test_a_search_that_was_interrupted_goes_on_from_its_file(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "search.json"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = [4]

    def score(small: nn.Module) -> float:
        if not calls[0]:
            raise KeyboardInterrupt
        calls[0] -= 1
        return -away(model, small)

    with pytest.raises(KeyboardInterrupt):
        searched(model, 8, search={"score": score, "file": path})
    assert len(json.loads(path.read_text())["steps"]) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    calls[0] = 100
    small = searched(model, 8, search={"score": score, "file": path})
    left = calls[0]
    assert 0 < 100 - left <= 4
    assert fxprune.record(searched(model, 8, search={"score": score})).removed == fxprune.record(small).removed
    calls[0] = 0
    assert (
        fxprune.record(searched(model, 8, search={"score": score, "file": path})).removed
        == fxprune.record(small).removed
    )
    with pytest.raises(FileError, match="is of another run"):
        searched(model, 8, keep={"macs": 0.6}, search={"score": score, "file": path})
    calls[0] = 2
    searched(model, 10, search={"score": score, "file": path})  # more steps go on from those that are known


# -- allotments --------------------------------------------------------------------------------------------------


def test_weights_like_counts_spread_a_budget_as_they_do() -> None:
    analysis = fxprune.analyze(net(), torch.randn(2, 10))
    for counts in ({0: 10, 1: 6}, {0: 5, 1: 12}, {0: 3, 1: 20}):
        allotment = Allotment(like(counts, analysis.groups))
        plan = analysis.plan(keep={"params": sum_of_params(counts)}, scope=allotment.counts)
        assert [analysis.groups[n].size - len(plan.removed.get(f"{2 * n}.bias", {}).get(0, ())) for n in (0, 1)] == [
            counts[0],
            counts[1],
        ]


def sum_of_params(counts: dict[int, int]) -> int:
    first, second = counts[0], counts[1]
    return 11 * first + (first + 1) * second + (second + 1) * 6


def test_a_ranking_shuffles_by_its_seed_only() -> None:
    class Criterion:
        comparable = False

        def __call__(self, group: fxprune.Group) -> Any:
            return np.arange(group.size)

    group = fxprune.analyze(net(), torch.randn(2, 10)).groups[1]
    plain, one, same, other = (
        MixedScores([Criterion()], {1: Ranking(0, seed)})(group).tolist() for seed in (0, 1, 1, 2)
    )
    assert plain == sorted(plain)
    assert one == same
    assert len({tuple(plain), tuple(one), tuple(other)}) == 3


# -- wrong requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": None, "ratio": 0.5}, "needs a budget"),
        ({"repair": None}, "needs data"),
        ({"repair": False}, "needs data"),
        ({"repair": True}, "no data to repair on"),
        ({"repair": []}, "there is no batch"),
        ({"repair": [torch.randn(1, 10)]}, "at least two samples"),
        ({"search": {"step": 3}}, "no setting 'step'"),
        ({"search": {"steps": 0}}, "steps must be"),
        ({"search": {"steps": True}}, "steps must be"),
        ({"search": {"file": 3}}, "file must be"),
        ({"search": {"progress": "yes"}}, "progress must be"),
        ({"search": {"score": 0.5}}, "score must be"),
        ({"search": {"score": lambda small: float("nan")}}, "no finite number"),
        ({"keep": {"macs": 1.5}}, "a share must be"),
        ({"ignore": ["0", "2"]}, "nothing to measure"),
    ],
)
def test_wrong_searches_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((InputError, PlanError), match=match):
        searched(net(), 3, **options)


def test_search_is_refused_where_it_is_without_effect() -> None:
    model, x = net(), torch.randn(2, 10)
    with pytest.raises(PlanError, match="without effect"):
        fxprune.transform(model, x, keep=KEEP, search={"steps": 3})
    with pytest.raises(InputError, match="must be a dict"):
        fxprune.transform(model, x, keep=KEEP, scope="search", repair=data(), search=3)
    with pytest.raises(PlanError, match="measures repaired models"):
        fxprune.analyze(model, x).plan(keep=KEEP, scope="search")
