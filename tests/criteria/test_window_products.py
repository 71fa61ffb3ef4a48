"""Counts by products of bytes equal those by the gradient of the convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fxprune.criteria import connections, window_products
from fxprune.criteria.connections import coactivation

CONVS = {
    "the toy of the notes": (nn.Conv2d(8, 7, 2), (2, 8, 5, 3)),
    "one position": (nn.Conv1d(1, 1, 2), (1, 1, 2)),
    "one position, several channels": (nn.Conv2d(3, 4, 2), (1, 3, 2, 2)),
    "padding": (nn.Conv2d(3, 4, 3, padding=(1, 2)), (3, 3, 6, 5)),
    "same": (nn.Conv1d(3, 4, 3, padding="same", dilation=2), (3, 3, 9)),
    "stride and dilation": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 3), padding=1), (3, 3, 8, 9)),
    "stride 1 and dilation": (nn.Conv2d(3, 4, (3, 2), dilation=(2, 3)), (3, 3, 8, 9)),
    "three dimensions": (nn.Conv3d(2, 3, (2, 1, 3)), (3, 2, 4, 3, 5)),
    "1x1": (nn.Conv2d(5, 4, 1), (3, 5, 4, 4)),
}


@pytest.mark.parametrize("bytes_at_a_time", [1, 2**22])
@pytest.mark.parametrize("kind", CONVS)
def test_both_ways_count_the_same(kind, bytes_at_a_time, monkeypatch):
    if not window_products._fast_and_right():
        pytest.skip("this CPU or build of torch has no fast product of bytes, so the other way alone runs here")
    conv, shape = CONVS[kind]
    x = torch.randn(shape).transpose(-1, -2).contiguous().transpose(-1, -2)  # strides of another order
    y = conv(x)
    monkeypatch.setattr(window_products, "WINDOWS", bytes_at_a_time)
    calls = []
    monkeypatch.setattr(connections, "window_counts", lambda *a: calls.append(a) or window_products.window_counts(*a))
    ours = coactivation(x, y, conv)
    assert calls
    monkeypatch.setattr(connections, "fits_products", lambda *_: False)
    assert torch.equal(ours, coactivation(x, y, conv))
    assert ours.any() or "one position" in kind
    assert ours.dtype is torch.int64


def test_a_product_of_bytes_is_right_for_every_small_shape():
    for m, n, k in itertools.product((1, 2, 9, 33), (1, 3, 17), (1, 2, 5, 64, 300)):
        a, b = (torch.rand(rows, k) > 0.4 for rows in (m, n))
        expected = (a.double() @ b.double().T).int()
        assert torch.equal(window_products._product(a.to(torch.int8), b.to(torch.int8)), expected), (m, n, k)
