"""Guards of exported programs that cannot be nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.capture.exported_guards import inline_guards
from fxprune.errors import CaptureError


class Guards(nn.Module):
    """Torch's guard function, as a module."""

    def __init__(self, condition: Callable[[Any], Any]) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Any) -> None:
        torch._assert(self.condition(x.shape[0]), "guard")


def program_with(condition: Callable[[Any], Any]) -> fx.GraphModule:
    root = nn.Module()
    root.add_module("_guards_fn", Guards(condition))
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_module("_guards_fn", (x,))
    graph.output(x)
    return fx.GraphModule(root, graph)


def test_a_guard_becomes_nodes() -> None:
    module = program_with(lambda size: size < 4)
    inline_guards(module, [torch.ones(3)])
    module.recompile()
    assert module(torch.ones(3)).shape == (3,)
    with pytest.raises(AssertionError):
        module(torch.ones(5))


@pytest.mark.parametrize("function", [math.sqrt, math.log2, float])
def test_a_guard_that_needs_a_plain_number_refuses_the_path(function: Callable[[Any], float]) -> None:
    module = program_with(lambda size: function(size) < 4)
    with pytest.raises(CaptureError, match="guards on the sizes of the inputs cannot be nodes"):
        inline_guards(module, [torch.ones(3)])


def test_the_export_of_a_batch_of_one_takes_it() -> None:
    torch.manual_seed(0)
    net, ids = nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, 3)).double().eval(), torch.arange(3)[None]
    small = fxprune.transform(net, ids, ratio=0.5, path="export")
    masked = fxprune.masked(net, fxprune.record(small).removed)
    for other in (ids, torch.randint(10, (1, 5)), torch.randint(10, (4, 3))):
        assert torch.allclose(small(other), masked(other), atol=1e-12)
