"""Exceptions of the user's code and of torch keep their text in the errors of fxprune, which say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import text_of

X = torch.arange(8.0).reshape(2, 4)


class TwoLayers(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8, dtype=dtype), nn.Linear(8, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class Raising(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("the first line\n\n  and the second")


class SizeAsNumber(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).view(-1, 8) * 1.0)


@pytest.mark.parametrize("path", ["fx", "eager", "export", None])
def test_the_whole_text_of_an_exception_in_forward_is_kept(path: str | None) -> None:
    with pytest.raises(fxprune.CaptureError) as caught:
        fxprune.transform(Raising(), X, ratio=0.5, path=path)
    assert caught.value.why == "LookupError: the first line\n  and the second"
    assert "\n  why  LookupError: the first line\n         and the second\n" in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_long_text_ends_after_twenty_lines() -> None:
    lines = text_of(ValueError("\n".join(map(str, range(100))))).splitlines()
    assert lines == ["ValueError: 0", *map(str, range(1, 20)), "..."]
    assert text_of(ValueError()) == "ValueError"


def test_a_size_that_forward_has_as_a_number_is_the_users_to_change() -> None:
    with pytest.raises(fxprune.RewriteError) as caught:
        fxprune.transform(SizeAsNumber(), X, ratio=0.5, path="eager", strict=True)
    assert "report this" not in str(caught.value)
    assert "read a size that forward has as a number from a tensor" in caught.value.do
    assert 'prefer="graph"' in caught.value.do
    small = fxprune.transform(SizeAsNumber(), X, ratio=0.5, prefer="graph")
    assert small.get_submodule("first").out_features == 4


def sharded() -> nn.Module:
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {"__module__": "torch.distributed.fsdp.fully_sharded"})
    return kind(TwoLayers())


def with_weight(change: Callable[[Tensor], Tensor]) -> nn.Module:
    net = TwoLayers()
    net.first.weight = nn.Parameter(change(net.first.weight.detach()), requires_grad=False)
    return net


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "sharded": (sharded, "FullyShardedDataParallel wraps the model", "pass the module that was wrapped"),
    "sharded inside": (lambda: nn.Sequential(sharded()), 'wraps the model\n  at   "0"', "pass the module"),
    "sparse weight": (lambda: with_weight(Tensor.to_sparse), "torch.sparse_coo, whose numbers", "to_dense()"),
    "weight in rows": (lambda: with_weight(Tensor.to_sparse_csr), "torch.sparse_csr, whose numbers", "to_dense()"),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_model_with_weights_that_cannot_be_cut_is_refused(name: str) -> None:
    make, says, do = REFUSED[name]
    with pytest.raises(fxprune.CaptureError) as caught:
        fxprune.transform(make(), X, ratio=0.5)
    assert says in str(caught.value)
    assert do in caught.value.do


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_pruned_and_proven(dtype: torch.dtype) -> None:
    net, x = TwoLayers(dtype), X.to(dtype)
    small = fxprune.transform(net, x, ratio=0.5)
    error, compared = fxprune.record(small).error, fxprune.record(small).compared
    assert error is not None
    assert error < 1e-9
    assert compared
    expected = fxprune.masked(net, fxprune.record(small).removed)(x)
    assert (small(x) - expected).abs().max() < 1e-4


def test_the_rule_of_a_user_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        raise LookupError("in the rule")

    monkeypatch.setattr("fxprune.analysis.observer.apply", wrong)
    with pytest.raises(fxprune.RuleError, match=r"the rule of aten::\w+ raises") as caught:
        fxprune.analyze(TwoLayers(), X, strict=True)
    assert caught.value.why == "LookupError: in the rule"


@pytest.mark.parametrize("function", [lambda p: fxprune.masked(p, {}), fxprune.masks_of])
def test_a_function_that_takes_modules_only_says_how_to_get_one(function: Callable[[Any], Any]) -> None:
    with pytest.raises(fxprune.CaptureError, match=r"ExportedProgram is no torch\.nn\.Module") as caught:
        function(torch.export.export(TwoLayers(), (X,)))
    assert caught.value.do == "pass `program.module()`"
