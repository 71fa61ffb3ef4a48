"""`analysis.transform` gives what `transform` gives, without another analysis, with the weights of now."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import _first_result


class Net(nn.Module):
    """Convolutions with a batch norm, a residual stream and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)
        self.halves = 2
        self.register_buffer("order", torch.arange(8).flip(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x[..., self.order].mean((2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def train(model: nn.Module) -> None:
    """A step of training, in place; statistics of batch norms move too."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(X + 1).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


@pytest.fixture
def analyses(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The paths on which a transform analyses."""
    paths: list[str | None] = []

    def watched(call: Any) -> Any:
        paths.append(call.path)
        return real(call)

    real = _first_result.find
    monkeypatch.setattr(_first_result, "find", watched)
    return paths


def same(first: nn.Module, second: nn.Module) -> None:
    """Both models have the same class, weights and outputs."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert type(first).__name__ == type(second).__name__
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(first(X), second(X))


@pytest.mark.parametrize(
    ("path", "choice"), [(None, "plan"), (None, "ratio"), (None, "keep"), ("fx", "plan"), ("export", "ratio")]
)
def test_it_gives_what_transform_gives_without_another_analysis(
    path: str | None, choice: str, analyses: list[str | None]
) -> None:
    model = net()
    analysis = fxprune.analyze(model, X, path=path)
    train(model)
    options: dict[str, Any] = {"ratio": {"ratio": 0.5}, "keep": {"keep": {"macs": 0.5}}}.get(choice, {})
    options = options or {"plan": analysis.plan(ratio=0.5, importance="l1")}
    small = analysis.transform(**options)
    assert analyses == []
    same(small, fxprune.transform(model, X, path=path, **options))
    assert fxprune.record(small).path == (path or "eager")
    assert fxprune.verify(model, small, X) < 1e-9


def test_folding_and_statistics_follow_the_weights_of_now(analyses: list[str | None]) -> None:
    model = net()
    analysis = fxprune.analyze(model, X)
    train(model)
    with torch.no_grad():
        model.inner.weight[:4] = 0.0
    small = analysis.transform(masks="zeros")
    assert analyses == ["fx"]  # a graph might take up more constants
    same(small, fxprune.transform(model, X, masks="zeros"))


def test_it_repairs(analyses: list[str | None]) -> None:
    analysis = fxprune.analyze(net(), X)
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    small = analysis.transform(analysis.plan(ratio=0.5), repair=batches, repair_mode="bias")
    assert fxprune.record(small).repair is not None
    assert analyses == []


def test_options_of_the_analysis_hold() -> None:
    analysis = fxprune.analyze(net(), X, prefer="graph", norms="preserve")
    small = analysis.transform(ratio=0.5)
    assert fxprune.record(small).path == "fx"
    assert fxprune.record(small).norms == "preserve"


def test_a_plan_for_another_path_is_carried_out_on_that_one(analyses: list[str | None]) -> None:
    model = net()
    plan = fxprune.analyze(model, X, path="fx").plan(ratio=0.5)
    small = fxprune.analyze(model, X).transform(plan)
    assert fxprune.record(small).path == "fx"
    assert analyses == ["fx"]


def test_an_exported_program_comes_back_as_a_program() -> None:
    program = torch.export.export(net(), (X,))
    analysis = fxprune.analyze(program, X)
    small = analysis.transform(ratio=0.5)
    assert isinstance(small, torch.export.ExportedProgram)
    assert torch.equal(small.module()(X), fxprune.transform(program, X, ratio=0.5).module()(X))


def other_parameter(model: Net) -> None:
    model.inner.weight = nn.Parameter(torch.randn_like(model.inner.weight))


def loaded(model: Net) -> None:
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, strict=False, assign=True)


def other_positions(model: Net) -> None:
    model.order.copy_(torch.arange(8))


@pytest.mark.parametrize("change", [other_parameter, loaded, other_positions])
def test_other_tensors_of_the_same_shape_are_analysed_again(change: Any, analyses: list[str | None]) -> None:
    model = net()
    analysis = fxprune.analyze(model, X)
    change(model)
    small = analysis.transform(ratio=0.5)
    assert analyses == ["eager"]
    same(small, fxprune.transform(model, X, ratio=0.5))


def test_a_forward_that_reads_weights_is_analysed_again(analyses: list[str | None]) -> None:
    class Deciding(Net):
        """Its forward takes another branch for other weights."""

        def forward(self, x: Tensor) -> Tensor:
            """Images to logits."""
            x = torch.relu(self.stem(x)) if self.stem.bias.sum() > 0 else self.stem(x).tanh()
            return self.head((x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Deciding().eval()
    analysis = fxprune.analyze(model, X, path="eager")
    with torch.no_grad():
        model.stem.bias.neg_()
    assert analysis.captured.real
    analysis.transform(ratio=0.5)
    assert analyses == ["eager"]


def new_layer(model: Net) -> None:
    model.inner = nn.Conv2d(12, 16, 3, padding=1, stride=1, dilation=1, bias=False)


def new_width(model: Net) -> None:
    model.inner, model.outer = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(20, 12, 3, padding=1)


def new_precision(model: Net) -> None:
    model.double()


def new_mode(model: Net) -> None:
    model.norm.train()


def new_setting(model: Net) -> None:
    model.inner.padding = (0, 0)


def new_hook(model: Net) -> None:
    model.inner.register_forward_hook(lambda module, args, result: result)


CHANGES = [
    (new_layer, '"inner" is'),
    (new_width, '"inner" is'),
    (new_precision, "torch.float64"),
    (new_mode, "training mode"),
    (new_setting, '"inner" is'),
    (new_hook, "1 hooks"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_another_structure_is_refused(change: Any, text: str) -> None:
    model = net()
    analysis = fxprune.analyze(model, X)
    change(model)
    with pytest.raises(fxprune.PlanError, match=text) as raised:
        analysis.transform(ratio=0.5)
    assert "analyze again" in raised.value.do


def test_a_number_that_forward_reads_counts_as_structure() -> None:
    class Halved(Net):
        """Its forward reads an integer of its own."""

        def forward(self, x: Tensor) -> Tensor:
            """Images to logits."""
            x = torch.relu(self.norm(self.stem(x)))
            n, c, h, w = x.shape
            x = x.view(n, self.halves, c // self.halves, h, w).flatten(1, 2)
            return self.head((x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Halved().eval()
    analysis = fxprune.analyze(model, X)
    model.halves = 3
    with pytest.raises(fxprune.PlanError, match="halves"):
        analysis.transform(ratio=0.5)


@pytest.mark.parametrize("option", ["also", "methods", "strict", "path", "prefer", "norms", "outputs", "model"])
def test_options_of_the_analysis_are_refused(option: str) -> None:
    analysis = fxprune.analyze(net(), X)
    with pytest.raises(fxprune.PlanError, match=f"its own {option}"):
        analysis.transform(ratio=0.5, **{option: None})


def test_two_requests_are_refused_and_warnings_name_the_line_of_the_caller() -> None:
    analysis = fxprune.analyze(net(), X)
    with pytest.raises(fxprune.PlanError, match="says already"):
        analysis.transform(analysis.plan(ratio=0.5), ratio=0.5)
    with pytest.raises(fxprune.PlanError, match="exactly one of"):
        analysis.transform()
    with pytest.raises(TypeError, match="rato"):
        analysis.transform(rato=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        analysis.transform(ratio=0.0)
        fxprune.transform(net(), X, ratio=0.0)
    assert [warning.filename for warning in caught] == [__file__] * 2
