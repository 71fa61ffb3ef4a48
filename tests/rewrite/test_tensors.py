"""Tensors at their new sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxprune.rewrite import tensors
from fxprune.rewrite.tensors import cut


def test_a_tensor_without_values_is_cut_in_one_step_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_in_blocks", lambda *_: pytest.fail("it was cut block by block"))
    kept = {dim: np.arange(size) % 2 == 0 for dim, size in enumerate((1 << 16, 1 << 14))}
    large = torch.empty(1 << 16, 1 << 14, device="meta")
    assert cut(large, kept).shape == (1 << 15, 1 << 13)
