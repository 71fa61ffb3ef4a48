"""The picture shows the mask, entry by entry."""

from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import nn

from fxprune.errors import FxpruneError, PlanError
from fxprune.sparse import MaskedConv2d, MaskedLinear, random_mask, spy


@pytest.fixture(autouse=True)
def _agg():
    mpl.use("Agg")
    yield
    pyplot.close("all")


def drawn(ax):
    (image,) = ax.images
    return image.get_array()


def test_a_mask_is_drawn_in_black_where_it_connects():
    mask = random_mask(4, 6, fan_in=2, seed=0)
    ax = spy(mask)
    assert np.array_equal(np.asarray(drawn(ax)), mask.numpy())
    colours = ax.images[0].to_rgba(drawn(ax))[..., :3]
    assert np.array_equal((colours == 0).all(-1), mask.numpy())
    assert np.array_equal((colours == 1).all(-1), ~mask.numpy())
    assert ax.get_title() == "8 of 24 connected"


def test_a_masked_layer_is_drawn_in_colours_where_it_connects():
    mask = random_mask(4, 6, fan_in=2, seed=0)
    layer = MaskedLinear(6, 4, mask)
    ax = Figure().subplots()
    assert spy(layer, ax=ax) is ax
    array = drawn(ax)
    assert np.array_equal(~array.mask, mask.numpy())
    assert np.allclose(array.filled(0), layer.weight.detach().numpy())
    low, high = ax.images[0].get_clim()
    assert high == -low == pytest.approx(layer.weight.abs().max().item())


def test_kernels_are_drawn_by_their_norm():
    layer = MaskedConv2d(6, 4, 3, random_mask(4, 6, fan_in=2, seed=0))
    array = drawn(spy(layer))
    assert np.array_equal(~array.mask, layer.mask[:, :, 0, 0].numpy())
    assert np.allclose(array.filled(0), layer.weight.detach().norm(dim=(2, 3)).numpy())
    positions = torch.rand(4, 6, 3, 3) < 0.1
    assert np.array_equal(np.asarray(drawn(spy(positions))), positions.any(-1).any(-1).numpy())


def test_dense_layers_and_matrices_are_drawn_where_they_are_not_zero():
    dense = nn.Linear(5, 3)
    dense.weight.data[1, 2] = 0
    for given in (dense, dense.weight):
        shown = ~drawn(spy(given)).mask
        assert np.array_equal(shown, dense.weight.detach().numpy() != 0)
    assert drawn(spy(torch.zeros(2, 3))).mask.all()


def test_it_is_saved_without_a_window(tmp_path):
    path = tmp_path / "mask.png"
    spy(torch.eye(5, dtype=torch.bool), path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert mpl.pyplot.get_fignums() == []


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for path in (None, "mask.png"):
        with pytest.raises(FxpruneError) as raised:
            spy(torch.eye(3, dtype=torch.bool), path=path)
        assert "drawing needs matplotlib" in str(raised.value)
        assert "pip install 'fxprune[plot]'" in str(raised.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (nn.ReLU(), "no layer with connections to draw"),
        ([[True]], "neither a layer nor a mask"),
        (torch.ones(3), r"the shape is \(3,\)"),
    ],
)
def test_anything_but_a_matrix_is_refused(given, sentence):
    with pytest.raises(PlanError, match=sentence):
        spy(given)
