"""Counts of coactivation and correlations equal four slow methods, for every kind of convolution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune.criteria import connections
from fxprune.criteria.connections import coactivation, correlation
from fxprune.errors import InputError, PlanError
from tests.criteria.slow_coactivation import brute_force, correlations, padded, single_units, stacked_units

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch, once per process

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def cases(draw):
    """A convolution in float64 and an input that it takes."""
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def sizes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    padding = draw(st.one_of(st.just(sizes(0, 2)), st.integers(0, 2), st.sampled_from(["same", "valid"])))
    if padding == "same":
        stride = (1,) * dims
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    spatial = tuple(d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True))
    if mode in ("circular", "reflect"):  # they cannot add more than is there
        assume(min(spatial) > 4)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    conv = CONVS[dims](
        *(c_in, c_out, kernel, stride, padding, dilation, groups),
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    x = torch.randn(draw(st.integers(1, 3)), c_in, *spatial, dtype=torch.float64)
    return conv.requires_grad_(False), x


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [3, 5, 8])
def test_windows_that_overlap_in_memory_are_counted_right(kernel, dilation, stride, batch, length):
    for seed in range(5):
        torch.manual_seed(seed)
        conv = nn.Conv1d(1, 2, kernel, stride, 3, dilation, bias=False).double().requires_grad_(False)
        x = torch.randn(batch, 1, length, dtype=torch.float64)
        assert torch.equal(coactivation(x, conv(x), conv).double(), brute_force(conv)(x, conv(x)))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_all_methods_count_the_same(case):
    conv, x = case
    y = conv(x)
    counts = coactivation(x, y, conv)
    assert counts.dtype is torch.int64
    assert counts.shape == conv.weight.shape
    assert torch.equal(counts.double(), brute_force(conv)(x, y))
    assert torch.equal(counts.double(), single_units(conv)(x, y))
    assert torch.equal(counts.double(), stacked_units(conv)(x, y))


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from([-0.7, -0.1, 0.4, 1.0]))
def test_counts_by_any_threshold_equal_the_loops(case, threshold):
    conv, x = case
    y = conv(x) * 3
    expected = brute_force(conv, threshold)(x, y)
    assert torch.equal(coactivation(x, y, conv, threshold).double(), expected)
    assert torch.equal(coactivation(x.float(), y.float(), conv, threshold).double(), expected)


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(2, 6))
def test_correlation_equals_the_loops(case, batch):
    conv, x = case
    x = torch.randn(batch, *x.shape[1:], dtype=x.dtype)
    x[:, :, ..., 0] = 0.1  # a column that does not vary over the batch, and whose mean is not exact
    y = torch.tanh(conv(x))
    found = correlation(x, y, conv)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found * (batch - 1) / batch, correlations(conv)(x, y), rtol=1e-10, atol=1e-12)


def test_the_references_can_fail():
    conv = nn.Conv2d(3, 2, 3, padding=1, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(4, 3, 5, 7, dtype=torch.float64)
    y = conv(x)
    counts = coactivation(x, y, conv).double()
    for method in (single_units, stacked_units, brute_force):
        assert torch.equal(counts, method(conv)(x, y))
        assert not torch.equal(counts, method(conv)(x.flip(3), y))
    torch.testing.assert_close(correlation(x, y, conv) * 3 / 4, correlations(conv)(x, y))
    assert not torch.allclose(correlation(x, y, conv) * 3 / 4, correlations(conv)(x.flip(3), y), rtol=1e-2)
    assert torch.equal(padded(conv, x)[:, :, 1:-1, 1:-1], x)


def test_values_of_the_weight_do_not_count():
    conv = nn.Conv2d(3, 4, 3)
    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 6, 6)
    counts = coactivation(x, y, conv)
    nn.init.constant_(conv.weight, math.nan)
    assert torch.equal(counts, coactivation(x, y, conv))


def test_correlation_is_chunked(monkeypatch):
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    x, y = torch.randn(3, 4, 7, 5, dtype=torch.float64), torch.randn(3, 6, 7, 5, dtype=torch.float64)
    whole = correlation(x, y, conv)
    monkeypatch.setattr(connections, "CHUNK", 2 * 5 * conv.weight.numel())  # two rows of five positions at a time
    torch.testing.assert_close(correlation(x, y, conv), whole, rtol=1e-12, atol=1e-12)
    assert whole.min() > 0.1


def test_nan_is_not_active_and_is_not_hidden():
    layer = nn.Linear(2, 1)
    x = torch.tensor([[1.0, math.nan], [2.0, 1.0], [4.0, 1.0]])
    y = torch.tensor([[1.0], [3.0], [1.0]])
    assert coactivation(x, y, layer).tolist() == [[3, 2]]
    assert correlation(x, y, layer).isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
def test_linear(shape):
    layer = nn.Linear(5, 3)
    x = torch.randn(shape)
    y = layer(x)
    expected = torch.zeros(3, 5, dtype=torch.int64)
    for row, out in zip(x.reshape(-1, 5), y.reshape(-1, 3), strict=True):
        expected += (out[:, None] > 0) & (row > 0)
    assert torch.equal(coactivation(x, y, layer), expected)


def test_correlation_of_a_linear_layer():
    layer = nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    y = layer(x).tanh()
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for position in range(2):
        both = torch.cat([y[:, position], x[:, position]], 1)
        expected += torch.corrcoef(both.T)[:3, 3:].abs() / 2
    torch.testing.assert_close(correlation(x, y, layer), expected)


def test_inputs_without_a_batch_are_counted():
    conv = nn.Conv2d(3, 4, 3, stride=2)
    x = torch.randn(3, 9, 9)
    y = conv(x)
    assert torch.equal(coactivation(x, y, conv), coactivation(x[None], y[None], conv))
    assert coactivation(x, y, conv).sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_counts_do_not_depend_on_the_dtype(dtype):
    """2^11 + 1 is no float16 and 2^8 + 1 no bfloat16; torch has no convolution of integers at all."""
    ones = torch.ones(1, 1, 70, 70, dtype=dtype)
    for layer, x in ((nn.Conv2d(1, 1, 1), ones), (nn.Linear(1, 1), ones.reshape(-1, 1))):
        assert coactivation(x, x, layer).flatten().tolist() == [4900]


def test_counts_are_exact_under_autocast():
    x = torch.ones(2049, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert coactivation(x, x, nn.Linear(1, 1)).item() == 2049
        assert coactivation(x[None].mT, x[None].mT, nn.Conv1d(1, 1, 1)).item() == 2049
        assert correlation(torch.randn(3, 1), torch.randn(3, 1), nn.Linear(1, 1)).dtype is torch.float32


@pytest.mark.parametrize("n", [2**24 - 1, 2**24, 2**24 + 1])
def test_counts_beyond_the_integers_of_float32(n):
    x = torch.ones(n, dtype=torch.int8)
    assert coactivation(x[:, None], x[:, None], nn.Linear(1, 1)).item() == n
    assert coactivation(x[None, None], x[None, None], nn.Conv1d(1, 1, 1)).item() == n


def test_nothing_is_recorded_or_changed():
    conv = nn.Conv2d(2, 2, 3)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    y = conv(x)
    before = x.detach().clone(), y.detach().clone()
    assert not coactivation(x, y, conv).requires_grad
    assert not correlation(torch.cat([x, -x]), torch.cat([y, y]), conv).requires_grad
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert conv.weight.grad is None


def test_tensors_that_do_not_fit_the_layer_are_refused():
    conv, x = nn.Conv2d(3, 4, 3, stride=2), torch.randn(2, 3, 9, 9)
    y = conv(x)
    with pytest.raises(InputError, match="do not belong to the layer") as error:
        coactivation(x, y[:, :, :3], conv)
    assert "their shapes are (2, 3, 9, 9) and (2, 4, 3, 4), after this input the output is (2, 4, 4, 4)" in str(
        error.value
    )
    for a, b in ((x[:, :2], y), (x, y[:1]), (x[0], y), (x[:, :, :2, :2], y), (x[0, 0], y)):
        with pytest.raises(InputError, match="do not belong to the layer"):
            coactivation(a, b, conv)
        with pytest.raises(InputError, match="do not belong to the layer"):
            correlation(a, b, conv)
    with pytest.raises(InputError, match="do not belong to the layer"):
        coactivation(torch.randn(2, 3), torch.randn(2, 4), nn.Linear(4, 4))
    with pytest.raises(InputError, match="do not belong to the layer"):
        coactivation(torch.tensor(1.0), torch.tensor(1.0), nn.Linear(1, 1))
    with pytest.raises(InputError, match="there is nothing to count"):
        coactivation(x[:0], y[:0], conv)
    with pytest.raises(InputError, match="input must be a tensor, not list"):
        coactivation([1.0], y, conv)
    with pytest.raises(InputError, match="output is complex"):
        coactivation(x, y.to(torch.complex64), conv)
    with pytest.raises(InputError, match="on several devices"):
        coactivation(x, y.to("meta"), conv)
    with pytest.raises(PlanError, match="the connections of ConvTranspose2d cannot be counted"):
        coactivation(x, y, nn.ConvTranspose2d(3, 4, 3))
    with pytest.raises(PlanError, match="LazyConv2d was never run"):
        coactivation(x, y, nn.LazyConv2d(4, 3))
    for threshold in (math.nan, math.inf, True, "0"):
        with pytest.raises(PlanError, match="threshold must be a finite number"):
            coactivation(x, y, conv, threshold)
    for few in (x[:1], x[0]):
        with pytest.raises(InputError, match="a batch of at least 2"):
            correlation(few, conv(few), conv)
    with pytest.raises(InputError, match="a batch of at least 2"):
        correlation(torch.randn(3), torch.randn(2), nn.Linear(3, 2))
