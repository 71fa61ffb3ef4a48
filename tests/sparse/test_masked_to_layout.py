"""A masked layer is a linear layer whose weight is zero where it is masked: sparse layouts hold its connections."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.sparse import MaskedLinear, random_mask, sparsify


def test_a_masked_layer_in_a_sparse_layout_holds_its_connections():
    mask = random_mask(16, 24, fan_in=3, seed=0)
    net = nn.Sequential(MaskedLinear(24, 16, mask, dtype=torch.float64), nn.ReLU()).eval()
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = net(x)
    made = sparsify(net, threshold=0.0, layout="csr")
    weights = [t for t in (*made.parameters(), *made.buffers()) if t.layout is torch.sparse_csr]
    assert [int(w.values().numel()) for w in weights] == [48]
    assert (made(x) - expected).abs().max() < 1e-12
