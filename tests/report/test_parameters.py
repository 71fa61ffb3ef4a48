"""Parameters that no layer owns: the dimension by which a picture and the page draw them."""

from __future__ import annotations

from typing import Any

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune import plot
from fxprune.report.drawing import GREY
from tests.report.test_page import data_of

matplotlib.use("Agg")

DRAWN = {"const": (1, 6, 3), "weight": (0, 7, 4), "matrix": (1, 10, 5)}
"""Parameter -> dimension, and its size before and after half of all channels went."""


class RawWeights(nn.Module):
    """A constant in place of an input, the weight of a convolution, a matrix [in, out], and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.const, self.weight = nn.Parameter(torch.randn(1, 6, 4, 4)), nn.Parameter(torch.randn(7, 6, 3, 3))
        self.matrix, self.scale = nn.Parameter(torch.randn(7, 10)), nn.Parameter(torch.ones(()))
        self.up, self.head = nn.Linear(3, 6), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = F.conv2d(self.const * self.up(x)[:, :, None, None], self.weight, padding=1)
        return self.head(torch.relu(made).mean((2, 3)) @ self.matrix) * self.scale


@pytest.fixture(scope="module")
def analysis() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(RawWeights().eval(), torch.randn(2, 3))


def boxes(ax: Any) -> dict[str, tuple[str, set[Any]]]:
    """Name of each parameter in a picture -> the width under its box, and the colours of the box."""
    found = {}
    for name in (text for text in ax.texts if text.get_text() in {*DRAWN, "scale"}):
        x, y = name.get_position()
        under = [t for t in ax.texts if t.get_position()[0] == x and t.get_position()[1] < y and "\n" in t.get_text()]
        nearest = max(under, key=lambda text: text.get_position()[1])
        low = nearest.get_position()[1]
        bars = [p for p in ax.patches if hasattr(p, "get_xy") and p.get_alpha() and low < _middle(p)[1] < y]
        colours = {matplotlib.colors.to_hex(p.get_facecolor()) for p in bars if abs(_middle(p)[0] - x) < 0.3}
        found[name.get_text()] = nearest.get_text(), colours
    return found


def _middle(patch: Any) -> tuple[float, float]:
    return patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2


def test_a_picture_draws_a_parameter_by_the_dimension_in_which_a_group_stands(analysis: fxprune.Analysis) -> None:
    found = boxes(plot.dependencies(analysis, analysis.plan(ratio=0.5)))
    assert {name: text for name, (text, _) in found.items()} == {
        **{name: f"{before} → {after}\nparameter" for name, (_, before, after) in DRAWN.items()},
        "scale": "1\nparameter",
    }
    assert {name for name, (_, colours) in found.items() if colours == {GREY}} == {"scale"}


@pytest.mark.parametrize("with_analysis", [True, False])
def test_the_page_draws_a_parameter_by_the_dimension_in_which_a_group_stands(
    analysis: fxprune.Analysis, with_analysis: bool
) -> None:
    plan = analysis.plan(ratio=0.5)
    alone = fxprune.record(analysis.transform(plan))
    data = data_of(analysis.report("html", plan=plan) if with_analysis else alone.report("html"))
    widths = {layer["id"]: layer["width"] for layer in data["layers"]}
    for name, width in DRAWN.items():
        assert tuple(widths[name][key] for key in ("dim", "before", "after")) == width
    assert widths["scale"] is None
