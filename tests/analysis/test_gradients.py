"""Models whose forward asks if gradients are recorded are analysed, cut and checked with and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.analysis.observed import Walked
from tests.support import randomise, relative_error

X = torch.randn(3, 6, dtype=torch.float64)


class Asking(nn.Module):
    """Runs a layer only if `asks` says so, and picks a channel by its number there if `picks`."""

    def __init__(self, asks: Callable[[Any, torch.Tensor], Any], *, picks: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.asks, self.picks = asks, picks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        if self.asks(self, h):
            h = h + h[:, 5:6] if self.picks else h + self.b(h)
        return self.c(h)


def made(*args: Any, **kwargs: Any) -> Asking:
    return randomise(Asking(*args, **kwargs).double(), 7, weights=True).eval()


def walks(model: nn.Module) -> list[tuple[bool, bool]]:
    """(training, gradients) of each run."""
    runs: tuple[Walked, ...] = fxprune.analyze(model, X, path="eager").walked
    return [(run.training, run.gradients) for run in runs]


QUESTIONS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "is_grad_enabled": lambda model, h: torch.is_grad_enabled(),
    "requires_grad": lambda model, h: h.requires_grad,
    "is_leaf": lambda model, h: not h.is_leaf,
    "grad_fn": lambda model, h: h.grad_fn is not None,
}


@pytest.mark.parametrize("picks", [True, False], ids=["channel by number", "another layer"])
@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.filterwarnings("ignore::fxprune.NothingRemovedWarning")
def test_the_small_model_is_right_with_and_without_gradients(name: str, picks: bool) -> None:
    model = made(QUESTIONS[name], picks=picks)
    assert walks(model) == [(False, False), (False, True)]
    small = fxprune.transform(model, X, ratio=0.5, path="eager")
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert small.b.weight.shape == ((16, 16) if picks else (8, 8))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert relative_error(small(X), masked(X)) < 1e-9
    assert picks or not [reason for reason in fxprune.record(small).reasons if "not reached" in reason]


def test_models_that_do_not_ask_are_walked_once() -> None:
    attention = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).double().eval()
    assert walks(attention) == [(False, False)]
    model = made(lambda model, h: model.b.weight.requires_grad)
    assert walks(model) == [(False, False)]
    assert fxprune.transform(model, X, ratio=0.5, path="eager").b.weight.shape == (8, 8)


def test_a_frozen_parameter_says_so_in_a_run() -> None:
    model = made(lambda model, h: model.b.weight.requires_grad)
    model.b.weight.requires_grad_(False)
    assert "b.weight" in " ".join(fxprune.analyze(model, X, path="eager").notes)


def test_a_mode_that_is_read_with_gradients_alone_is_walked() -> None:
    model = made(lambda model, h: torch.is_grad_enabled() and model.training)
    assert walks(model) == [(False, False), (False, True), (True, True), (True, False)]
    small = fxprune.transform(model, X, ratio=0.5, path="eager")
    assert small.b.weight.shape == (8, 8)


def test_the_proof_runs_with_gradients_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(Asking, "noted", lambda self, h: ran.append(torch.is_grad_enabled()), raising=False)

    def asks(model: Any, h: torch.Tensor) -> bool:
        if not isinstance(h, torch._subclasses.FakeTensor):
            model.noted(h)
        return torch.is_grad_enabled()

    fxprune.transform(made(asks), X, ratio=0.5, path="eager")
    assert ran == [False, False, True, True]


def test_a_run_that_raises_is_told() -> None:
    def asks(model: Any, h: torch.Tensor) -> bool:
        if torch.is_grad_enabled():
            raise RuntimeError("for inference only")
        return True

    small = fxprune.transform(made(asks), X, ratio=0.5, path="eager")
    assert fxprune.record(small).reasons == (
        "what is done with gradients was not looked at, because forward raises there: RuntimeError: for inference only",
    )


def test_a_question_for_inference_mode_is_told() -> None:
    model = made(lambda model, h: torch.is_inference_mode_enabled() or True)
    (note,) = fxprune.analyze(model, X, path="eager").notes
    assert note.startswith("what forward does under torch.inference_mode() was not looked at")


def test_reasons_name_gradients() -> None:
    analysis = fxprune.analyze(made(QUESTIONS["requires_grad"], picks=True), X, path="eager")
    assert "(with gradients)" in " ".join(map(str, analysis.locked))


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_twice_to_save_memory(reentrant: bool) -> None:
    class Saving(Asking):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            if self.training and torch.is_grad_enabled():
                return self.c(checkpoint(self.b, h, use_reentrant=reentrant))
            return self.c(self.b(h))

    model = randomise(Saving(lambda model, h: None).double(), 7, weights=True).eval()
    assert walks(model) == [(False, False), (True, False), (True, True), (False, True)]
    small = fxprune.transform(model, X, ratio=0.5, path="eager")
    masked = fxprune.masked(model, fxprune.record(small).removed)
    for one in (small.train(), masked.train()):
        one(X).square().sum().backward()
    assert relative_error(small.c.bias.grad, masked.c.bias.grad) < 1e-9
    assert not fxprune.record(small).reasons


def test_what_is_kept_of_a_call_with_gradients_is_read_by_the_next() -> None:
    class Keeping(Asking):
        kept: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            if h.requires_grad:
                h, self.kept = h if self.kept is None else h + self.b(self.kept), h.detach()
            return self.c(h)

    model = randomise(Keeping(lambda model, h: None).double(), 7, weights=True).eval()
    small = fxprune.transform(model, X, ratio=0.5, path="eager")
    masked = fxprune.masked(model, fxprune.record(small).removed)
    assert small.b.weight.shape == (8, 8)
    for _ in range(2):
        assert relative_error(small(X), masked(X)) < 1e-9


def test_constants_are_folded_into_what_only_gradients_reach() -> None:
    class Other(Asking):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            return self.c(h) + self.b(h)[:, :5] if torch.is_grad_enabled() else self.c(h)

    model = randomise(Other(lambda model, h: None).double(), 7, weights=True).eval()
    with torch.no_grad():
        model.a.weight[:4] = 0.0
    small = fxprune.transform(model, X, masks="zeros", bias="fold", path="eager")
    assert small.b.weight.shape == (5, 12)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert relative_error(small(X), model(X)) < 1e-9
