"""A distribution that forward returns is a result: its parameters keep their shapes, are compared and can be named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributions, nn
from torch.distributions import transforms

import fxprune
from fxprune.capture.process_state import public_call
from fxprune.capture.values import tensors_in
from tests.support import randomise, relative_error

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions check their arguments, as they do unless this process has compiled or exported something before."""
    monkeypatch.setattr(distributions.Distribution, "_validate_args", True)


class Policy(nn.Module):
    """A distribution of actions, and a value."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make, self.trunk = make, nn.Linear(6, 16)
        self.actor, self.action, self.critic = nn.Linear(16, 12), nn.Linear(12, 4), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.relu(self.trunk(x))
        return self.make(self.action(torch.relu(self.actor(hidden)))), self.critic(hidden)


def normal(y: torch.Tensor) -> Any:
    return distributions.Normal(y, y.exp())


MAKERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "Normal": normal,
    "without checks": lambda y: distributions.Normal(y, y.exp(), validate_args=False),
    "probabilities": lambda y: distributions.Categorical(probs=y.softmax(-1)),
    "mixture": lambda y: distributions.MixtureSameFamily(distributions.Categorical(logits=y), normal(y)),
    "transformed": lambda y: distributions.TransformedDistribution(
        normal(y), [transforms.AffineTransform(y, 2.0), transforms.TanhTransform()]
    ),
    "list": lambda y: {"heads": [distributions.Bernoulli(logits=y)]},
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_parameters_of_a_distribution_are_results(name: str) -> None:
    model = randomise(Policy(MAKERS[name]), 0)
    analysis = fxprune.analyze(model, X)
    assert analysis.cost().macs == 3 * (6 * 16 + 16 * 12 + 12 * 4 + 16)
    assert [group.name for group in analysis.groups] == ["trunk", "actor"]
    small = fxprune.transform(model, X, ratio={"*": 0.5})
    assert (small.actor.out_features, small.action.out_features) == (6, 4)
    made = fxprune.record(small)
    assert made.path == "eager"
    assert made.exact
    reference = fxprune.masked(model, made.removed)
    ours, theirs = small.double()(X.double()), reference.double()(X.double())
    assert len(tensors_in(ours)) > 1
    for a, b in zip(tensors_in(ours), tensors_in(theirs), strict=True):
        assert relative_error(a, b) < 1e-9


def test_a_distribution_that_moves_is_measured() -> None:
    model = randomise(Policy(normal), 0)
    found = fxprune.sensitivity(model, X, groups="actor", ratios=(0.5,), repair=[torch.randn(4, 6) for _ in range(10)])
    assert found.points[0].value > 1e-3


def test_a_part_of_a_distribution_is_an_output() -> None:
    model = randomise(Policy(normal), 0)
    analysis = fxprune.analyze(model, X, outputs=[(0, "loc")])
    assert "not compared" in analysis.report()
    with pytest.raises(fxprune.InputError, match=r'\(0, "loc"\), \(0, "scale"\), 1'):
        fxprune.analyze(model, X, outputs=[(0, "mean")])


class Latent(nn.Module):
    """A latent of a normal distribution, drawn in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.deviation, self.decode = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent = distributions.Normal(self.mean(x), self.deviation(x).exp())
        return self.decode(latent.rsample() if self.training else latent.mean)


def test_the_latent_of_a_distribution_loses_channels() -> None:
    """The check of its arguments, `aten::_is_all_true`, is a statistic over them."""
    model = randomise(Latent(), 0)
    small = fxprune.transform(model, X, ratio=0.5)
    assert (small.mean.out_features, small.deviation.out_features) == (4, 4)
    assert any("aten::_is_all_true" in reason for reason in fxprune.record(small).reasons)
    assert fxprune.record(small).error < 1e-12


def test_a_distribution_is_exported_as_its_parameters(tmp_path: Path) -> None:
    model = randomise(Policy(MAKERS["without checks"]), 0).eval()
    small = fxprune.transform(model, X, ratio=0.5)
    made = fxprune.export(small, tmp_path / "small.pt2", X)
    assert made.reasons == ()
    actions, value = torch.export.load(tmp_path / "small.pt2").module()(X)
    expected = small(X)
    assert list(actions) == ["loc", "scale"]
    assert relative_error([actions["loc"], actions["scale"], value], [*tensors_in(expected)]) < 1e-6


@pytest.mark.parametrize("seed", [3, 24])
def test_what_is_nothing_but_roundings_is_no_error(seed: int) -> None:
    """The sum of probabilities minus 1 is three numbers here, which one rounding of each weight may not move."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()

    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = model[0], model[2]

        def forward(self, x: torch.Tensor) -> Any:
            return distributions.Categorical(probs=self.o(torch.relu(self.e(x))).softmax(-1))

    assert fxprune.record(fxprune.transform(Checked().eval(), torch.randn(3, 6), ratio=0.5)).path == "eager"


def test_the_check_of_arguments_is_no_decision_of_the_forward() -> None:
    (note,) = fxprune.analyze(randomise(Policy(normal), 0), X).notes
    assert note.startswith("the check of the arguments of a distribution reads numbers at ")
    assert f"({__file__}:" in note
    assert "also=" not in note
    assert fxprune.analyze(randomise(Policy(MAKERS["without checks"]), 0), X).notes == ()


def test_a_public_call_leaves_the_checks_of_distributions_on() -> None:
    """The first export of a process turns them off for good."""
    with public_call():
        distributions.Distribution.set_default_validate_args(False)
    assert distributions.Distribution._validate_args is True
