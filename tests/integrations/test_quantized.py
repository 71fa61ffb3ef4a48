"""Quantisation by torchao: after pruning, never before."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()


def quantized(model: nn.Module) -> nn.Module:
    quantize_(model, Int8WeightOnlyConfig())
    return model


def test_a_small_model_is_quantised_like_any_other() -> None:
    small = fxprune.transform(net(), X, ratio=0.5)
    expected, before = small(X), fxprune.cost(small, X)
    quantized(small)
    assert relative_error(small(X), expected) < 0.05
    now = fxprune.cost(small, X)
    assert (now.params, now.macs) == (before.params, before.macs)
    assert before.bytes / 4 < now.bytes < before.bytes / 3
    assert fxprune.record(small).after["0.weight"] == (64, 64)


def test_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = net()
    small = quantized(fxprune.transform(model, X, ratio=0.5))
    with pytest.raises(fxprune.CaptureError, match=r"no plain tensor\n  at   \"0.weight\"\n  why  it is Int8Tensor"):
        fxprune.transform(small, X, ratio=0.5)
    with pytest.raises(fxprune.CaptureError, match="Int8Tensor"):
        fxprune.verify(model, small, X)
    for call in (lambda: fxprune.repair(small, model, [X]), lambda: fxprune.expand(small, model)):
        with pytest.raises(
            fxprune.CaptureError, match=r"no plain tensor\n  at   \"0.weight\"\n  why  it is Int8Tensor"
        ):
            call()
    with pytest.raises(fxprune.CaptureError, match="Int8Tensor"):
        fxprune.GradualPruner(small, X, keep={"macs": 0.5})
    with pytest.raises(fxprune.FileError, match=r"\"0.weight\" cannot be stored\n  why  it is Int8Tensor"):
        fxprune.save(small, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


@pytest.mark.parametrize("prune", [fxprune.transform, fxprune.transform_])
def test_layers_with_packed_weights_are_refused_by_name(prune: Any) -> None:
    model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(fxprune.CaptureError, match=r"quantised\n  at   \"0\"\n  why .*Linear has packed"):
        prune(model, X, ratio=0.5)
