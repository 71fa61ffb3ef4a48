"""Distributions in exported graphs: they are results, and the checks of their arguments are left out and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

import fxprune
from fxprune.errors import CaptureError


class Forecast(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


def student(y: Tensor) -> Any:
    return distributions.StudentT(2 + y.exp(), y, y.exp())


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_distribution_is_exported_without_its_checks(suffix: str, batch: bool, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    net, path = Forecast(student).eval(), tmp_path / f"a{suffix}"
    made = fxprune.export(net, path, X, dynamic_batch=batch)
    assert made.error is None or made.error < 1e-6
    assert made.reasons[0].startswith("the checks of the arguments of distributions are left out")
    if suffix == ".pt2":
        found, wanted = torch.export.load(path).module()(X), net(X)
        assert torch.equal(found["df"], wanted.df)
        assert torch.equal(found["loc"], wanted.loc)
    with pytest.raises(ValueError, match="to satisfy the constraint"):  # elsewhere they are checked as before
        distributions.Normal(torch.zeros(1), torch.full((1,), -1.0))


def test_a_distribution_that_is_told_to_check_is_refused(tmp_path: Path) -> None:
    net = Forecast(lambda y: distributions.Normal(y, y.exp(), validate_args=True)).eval()
    with pytest.raises(CaptureError, match="do   leave out `validate_args=True`, since a distribution that checks"):
        fxprune.export(net, tmp_path / "a.pt2", X)
    assert not (tmp_path / "a.pt2").exists()
    assert distributions.Distribution._validate_args


def test_a_distribution_without_checks_leaves_nothing_out(tmp_path: Path) -> None:
    net = Forecast(lambda y: distributions.Normal(y, y.exp(), validate_args=False)).eval()
    assert fxprune.export(net, tmp_path / "a.pt2", X).reasons == ()
