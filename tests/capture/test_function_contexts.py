"""Numbers that an `autograd.Function` keeps for its backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class MeanGradient(torch.autograd.Function):
    """Divides the gradient by a width that it keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: str) -> Tensor:
        if kept == "width":
            ctx.n = x.shape[1]
        else:
            ctx.n = 3
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.n, None


class ByContext(torch.autograd.Function):
    """The same, with a context that is set up apart from forward."""

    @staticmethod
    def forward(x: Tensor, kept: str) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.n = inputs[0].shape[1] if inputs[1] == "width" else 3

    backward = MeanGradient.backward


class Net(nn.Module):
    def __init__(self, function: Any, kept: str) -> None:
        super().__init__()
        self.a, self.b, self.function, self.kept = nn.Linear(6, 16), nn.Linear(16, 4), function, kept

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function.apply(self.a(x), self.kept))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("function", [MeanGradient, ByContext])
def test_a_width_in_a_context_is_named(function: Any, verify: bool) -> None:
    x = torch.randn(3, 6)
    before = vars(torch.autograd.Function)["apply"]
    small = fxprune.transform(Net(function, "width"), x, ratio=0.5, verify=verify)
    (reason,) = [reason for reason in fxprune.record(small).reasons if "autograd.Function" in reason]
    assert f"the autograd.Function {function.__name__} ({__file__}:" in reason
    assert "keeps n = 8 for its backward, 16 in the original" in reason
    assert small(x).grad_fn is not None
    assert vars(torch.autograd.Function)["apply"] is before


def test_a_number_that_stays_is_not_named() -> None:
    small = fxprune.transform(Net(MeanGradient, "other"), torch.randn(3, 6), ratio=0.5)
    assert not any("autograd.Function" in reason for reason in fxprune.record(small).reasons)


class Elsewhere(nn.Module):
    """Calls the function in a submodule, in one run alone."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.a, self.inner, self.b, self.run = nn.Linear(6, 16), Inner(), nn.Linear(16, 4), run

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        called = {"training": self.training, "main": True, "further": x.shape[0] == 5}.get(self.run, False)
        return self.b(self.inner(h) if called else h)

    def other(self, x: Tensor) -> Tensor:
        return self.b(self.inner(self.a(x)))


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return MeanGradient.apply(x, "width")


WHEN = {
    "main": "",
    "training": " in training mode",
    "further": " on further inputs",
    "method": ' in the method "other"',
}


@pytest.mark.parametrize("run", WHEN)
def test_each_run_is_looked_at_and_the_module_is_named(run: str) -> None:
    given: dict[str, Any] = {"also": [torch.randn(5, 6)]} if run == "further" else {}
    x = torch.randn(3, 6)
    if run == "method":
        given = {"methods": {"other": (x,)}}
    small = fxprune.transform(Elsewhere(run).eval(), x, ratio=0.5, path="eager", **given)
    (reason,) = [reason for reason in fxprune.record(small).reasons if "autograd.Function" in reason]
    assert reason.startswith(f'the autograd.Function MeanGradient in "inner" ({__file__}:')
    assert reason.endswith(f"are not compared{WHEN[run]}")
