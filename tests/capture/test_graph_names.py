"""Models with parts whose names a `GraphModule` has for something else: the class is kept, a graph is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Named(nn.Module):
    """A parameter, a buffer or a layer with a given name between two layers."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 3)
        if kind == "layer":
            setattr(self, name, nn.Linear(12, 12))
        elif kind == "parameter":
            setattr(self, name, nn.Parameter(torch.rand(12)))
        else:
            self.register_buffer(name, torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        h, part = torch.relu(self.first(x)), getattr(self, self.name)
        return self.last(part(h) if isinstance(part, nn.Module) else h * part)


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["parameter", "buffer", "layer"])
@pytest.mark.parametrize("name", ["code", "graph", "meta", "_code", "recompile"])
def test_the_class_is_kept(name: str, kind: str) -> None:
    model = Named(name, kind).eval()
    small = fxprune.transform(model, X, ratio=0.5)
    assert type(small) is Named
    assert small.first.out_features == 6
    assert fxprune.verify(model, small, X) < 1e-6


@pytest.mark.parametrize("path", ["fx", "export"])
@pytest.mark.parametrize(("name", "kind"), [("code", "parameter"), ("meta", "layer"), ("graph", "buffer")])
def test_a_graph_is_refused_by_name(name: str, kind: str, path: str) -> None:
    with pytest.raises(
        fxprune.CaptureError, match=rf'named "{name}"\n.*\n  why .*GraphModule.{name} is something else'
    ):
        fxprune.transform(Named(name, kind).eval(), X, ratio=0.5, path=path)


def test_parts_of_submodules_may_have_any_name() -> None:
    model = nn.Sequential(Named("code", "parameter"), nn.ReLU()).eval()
    assert fxprune.record(fxprune.transform(model, X, ratio=0.5, path="fx")).path == "fx"
