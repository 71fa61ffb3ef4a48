"""Masked layers in sparse layouts: only their connections are stored."""

from __future__ import annotations

import pytest
import torch

from fxprune.sparse import MaskedConv2d, MaskedLinear, plain, random_mask, sparsify


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_a_masked_layer_in_a_sparse_layout_holds_its_connections(layout):
    layer = MaskedLinear(24, 16, random_mask(16, 24, fan_in=3, seed=0), dtype=torch.float64).eval()
    x = torch.randn(5, 24, dtype=torch.float64)
    layer.weight.data.add_(1.0)  # also where nothing is connected; reading the weight clears it
    made = sparsify(plain(layer), layout=layout)
    assert (made(x) - layer(x)).abs().max() < 1e-12
    assert made.values.numel() == layer.connections == 48


def test_a_masked_convolution_in_a_sparse_layout_holds_its_connections():
    layer = MaskedConv2d(6, 4, 3, random_mask(4, 3, fan_in=1, seed=0), groups=2, dtype=torch.float64).eval()
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    made = sparsify(plain(layer))
    assert (made(x) - layer(x)).abs().max() < 1e-12
    assert made.values.numel() == layer.connections == 36
