"""Bytes are counted exactly, latency comes from a given timer, and the text agrees with the figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import InputError, PlanError
from fxprune.sparse import SparseLinear, break_even, compare, sparsify, sparsify_model


class Clock:
    """Runs nothing; says the seconds for the dense and the sparse function in turn, and counts the calls."""

    def __init__(self, dense, sparse):
        self.dense, self.sparse, self.calls = list(dense), list(sparse), []

    def __call__(self, function):
        holds = any(isinstance(m, SparseLinear) for m in function.func.modules())
        self.calls.append("sparse" if holds else "dense")
        times = self.sparse if holds else self.dense
        return times.pop(0) if len(times) > 1 else times[0]


def layer(inputs=64, outputs=32, density=0.1, **options):
    dense = nn.Linear(inputs, outputs, **options)
    dense.weight.data = (torch.rand(outputs, inputs) + 0.5) * (torch.rand(outputs, inputs) < density)
    return dense


@pytest.mark.parametrize(
    ("layout", "blocksize", "indices"),
    [
        ("csr", None, lambda stored: 4 * (33 + stored)),
        ("coo", None, lambda stored: 8 * 2 * stored),
        ("bsr", (4, 4), lambda stored: 4 * (9 + stored // 16)),
    ],
)
def test_bytes_are_those_of_the_components(layout, blocksize, indices):
    sparse = sparsify(layer(density=0.02), layout=layout, blocksize=blocksize)
    found = compare(sparse)
    stored = sparse.values.numel()
    assert found.dense_bytes == 4 * (64 * 32 + 32)
    assert found.sparse_bytes == 4 * stored + indices(stored) + 4 * 32
    assert found.sparse_bytes == sum(t.numel() * t.element_size() for t in sparse.state_dict().values())
    assert found.density == stored / (64 * 32)
    assert found.layouts == (layout,)


def test_latency_is_the_median_of_interleaved_rounds():
    clock = Clock([9.0, 0.002, 0.001, 0.009], [9.0, 0.004, 0.005, 0.001])
    found = compare(sparsify(layer()), torch.zeros(3, 64), repeats=3, timer=clock)
    assert clock.calls == ["dense", "sparse"] * 4
    assert (found.dense_ms, found.sparse_ms, found.repeats) == (2.0, 4.0, 3)
    assert found.slower is True
    assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize(
    ("dense", "sparse", "slower", "sentence"),
    [
        (0.001, 0.002, True, "The sparse module is slower than the dense one at density 0."),
        (0.002, 0.001, False, "The sparse module is faster than the dense one at density 0."),
        (0.001, 0.001, False, "Both take the same time."),
    ],
)
def test_the_text_says_which_is_faster(dense, sparse, slower, sentence):
    found = compare(sparsify(layer()), torch.zeros(1, 64), repeats=2, timer=Clock([dense], [sparse]))
    assert found.slower is slower
    assert sentence in str(found)
    assert f"latency  dense {1000 * dense:.3f} ms, sparse {1000 * sparse:.3f} ms (median of 2, " in str(found)


def test_unmeasured_latency_is_unknown():
    found = compare(sparsify(layer(density=0.9)))
    assert found.dense_ms is None
    assert found.sparse_ms is None
    assert found.slower is None
    assert "latency  unknown: no example input was given" in str(found)
    assert f": {found.sparse_bytes / found.dense_bytes:.3f} times, not smaller" in str(found)
    assert "not smaller" not in str(compare(sparsify(layer(density=0.1))))


def test_a_model_is_compared_as_a_whole_and_left_alone():
    net = nn.Sequential(layer(8, 4), nn.BatchNorm1d(4), layer(4, 4, density=0.5))
    sparse = sparsify_model(net, where="0").train()
    before = {name: t.clone() for name, t in sparse.state_dict().items()}
    found = compare(sparse, torch.randn(5, 8), repeats=1)
    assert found.layers == 1
    assert found.density == sparse[0].density
    assert found.dense_bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert found.dense_bytes - found.sparse_bytes == 4 * (32 - sparse[0].values.numel() * 2 - 5)
    assert found.sparse_ms > 0
    assert all(torch.equal(sparse.state_dict()[name], t) for name, t in before.items())


def test_density_of_several_layers_counts_their_elements():
    net = sparsify_model(nn.Sequential(layer(64, 2, 0.5), layer(2, 3, 0.5)))
    stored = net[0].values.numel() + net[1].values.numel()
    assert compare(net).density == pytest.approx(stored / (128 + 6), abs=1e-12)


def test_comparisons_refuse_bad_arguments():
    with pytest.raises(PlanError, match="there is no sparse layer to compare"):
        compare(nn.Linear(2, 2))
    with pytest.raises(InputError, match="example inputs are of no use"):
        compare(sparsify(layer()), "x")
    with pytest.raises(PlanError, match="repeats must be a positive integer, not 0"):
        compare(sparsify(layer()), torch.zeros(1, 64), repeats=0)
    with pytest.raises(PlanError, match="batch must be a positive integer, not True"):
        break_even(8, 8, batch=True)
    with pytest.raises(PlanError, match=r"densities must be numbers between 0 and 1, not 1\.5"):
        break_even(8, 8, densities=(0.1, 1.5))
    with pytest.raises(PlanError, match=r"densities must be numbers between 0 and 1, not \(\)"):
        break_even(8, 8, densities=())
    with pytest.raises(PlanError, match=r"there is no layout 'scr'(.|\n)*did you mean"):
        break_even(8, 8, "scr")
    with pytest.raises(PlanError, match=r"blocks of \(3, 3\) do not divide the weight"):
        break_even(8, 8, "bsr", blocksize=(3, 3))


def linear_clock(fixed, per_stored):
    """Seconds of a sparse layer that rise with its density, over one second of the dense layer."""

    def timer(function):
        sparse = isinstance(function.func, SparseLinear)
        return fixed + per_stored * function.func.density if sparse else 1.0

    return timer


def test_break_even_lies_where_the_clock_says():
    found = break_even(40, 50, batch=3, densities=(0.3, 0.1, 0.2, 0.6), timer=linear_clock(0.2, 2.0))
    assert found.density == pytest.approx(0.4, abs=1e-12)
    assert [point[0] for point in found.points] == [0.1, 0.2, 0.3, 0.6]
    assert found.points[1] == (0.2, 1000.0, pytest.approx(600.0))
    assert str(found) == "csr [50, 40], batch 3: sparse is faster below density 0.4"


def test_break_even_outside_the_measured_range_says_so():
    never = break_even(40, 50, densities=(0.1, 0.2), timer=linear_clock(2.0, 1.0))
    assert never.density is None
    assert str(never) == "csr [50, 40], batch 1: none found; sparse is slower even at density 0.1"
    always = break_even(40, 50, densities=(0.1, 0.2), timer=linear_clock(0.1, 0.1))
    assert always.density == 0.2
    assert str(always).endswith("sparse is faster at every density measured, up to 0.2")

    def odd(function):  # slower at the lowest density and faster above: no density has only faster ones below it
        sparse = isinstance(function.func, SparseLinear)
        return (2.0 if function.func.density < 0.15 else 0.5) if sparse else 1.0

    assert break_even(40, 50, densities=(0.1, 0.2), timer=odd).density is None


def test_break_even_of_blocks_keeps_whole_blocks():
    found = break_even(16, 32, "bsr", blocksize=(4, 8), densities=(0.25, 0.5), timer=linear_clock(0.0, 1.0))
    assert [point[0] for point in found.points] == [0.25, 0.5]
    assert found.layout == "bsr"


def test_the_clock_that_is_used_by_default_runs_both():
    found = break_even(16, 16, densities=(0.1, 0.5), repeats=2)
    assert all(dense > 0 and sparse > 0 for _, dense, sparse in found.points)
