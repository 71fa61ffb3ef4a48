"""Groups that the text report tells apart, although they have one name and kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fxprune


class GroupedQueries(nn.Module):
    """Attention in which two heads of queries share one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.width = 4, 2, 8
        self.q, self.kv, self.o = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.width).transpose(1, 2)
        k, v = self.kv(x).view(b, t, 2, self.shared, self.width).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


def test_a_layer_that_the_others_do_not_have_tells_them_apart() -> None:
    analysis = fxprune.analyze(GroupedQueries(), torch.randn(2, 5, 32))
    assert [group.name for group in analysis.groups if group.kind == "heads"] == ["q", "q"]
    named = [line.partition("  ")[0] for line in analysis.report().splitlines() if " heads " in line]
    assert named == ["q with kv", "q"]
