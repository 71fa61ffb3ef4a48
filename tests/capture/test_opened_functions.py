"""Functions of torch that compute sizes from attributes of the model, in a model that keeps its class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.support import randomise


class Attention(nn.Module):
    """Queries, keys and values of four layers, and torch's function."""

    weights = True

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 24, 4
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
        self.query, self.key, self.value, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(0, 1)
        return self.last(h + self.attend(h)).transpose(0, 1)

    def attend(self, h: Tensor) -> Tensor:
        made, _ = F.multi_head_attention_forward(
            *(h, h, h, self.width, self.heads, torch.empty([0])),
            torch.cat((self.query.bias, self.key.bias, self.value.bias)),
            *(None, None, False, 0.0, self.out.weight, self.out.bias),
            training=self.training,
            need_weights=self.weights,
            use_separate_proj_weight=True,
            q_proj_weight=self.query.weight,
            k_proj_weight=self.key.weight,
            v_proj_weight=self.value.weight,
        )
        return made


class WithoutWeights(Attention):
    weights = False


class OneMatrix(Attention):
    """Keeps the matrices in one."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.zeros(72, 24)), nn.Parameter(torch.zeros(72))
        del self.query, self.key, self.value

    def attend(self, h: Tensor) -> Tensor:
        made, _ = F.multi_head_attention_forward(
            *(h, h, h, self.width, self.heads, self.matrix, self.bias),
            *(None, None, False, 0.0, self.out.weight, self.out.bias),
            training=self.training,
        )
        return made


class WithAMask(Attention):
    """Computes a bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 4, 5, 5))

    def attend(self, h: Tensor) -> Tensor:
        t, n, _ = h.shape
        made, _ = F.multi_head_attention_forward(
            *(h, h, h, self.width, self.heads, torch.empty([0])),
            torch.cat((self.query.bias, self.key.bias, self.value.bias)),
            *(None, None, False, 0.0, self.out.weight, self.out.bias),
            training=self.training,
            attn_mask=self.table.expand(n, -1, -1, -1).reshape(n * self.heads, t, t),
            use_separate_proj_weight=True,
            q_proj_weight=self.query.weight,
            k_proj_weight=self.key.weight,
            v_proj_weight=self.value.weight,
        )
        return made


@pytest.mark.parametrize("kind", [Attention, WithoutWeights, OneMatrix, WithAMask])
@pytest.mark.parametrize("norms", ["kept", "preserve"])
def test_the_sizes_inside_are_those_of_the_small_model(kind: type[Attention], norms: str) -> None:
    net, x = randomise(kind().double().eval(), 0), torch.randn(2, 5, 6).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager", norms=norms)
    assert type(small) is kind
    assert small.width < 24
    assert small.width % small.heads == 0
    assert small.first.out_features == small.out.out_features == small.width
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())
    error = fxprune.record(small).error
    assert error is not None
    assert error < 1e-9


def test_products_of_linear_are_counted_apart_in_layers_of_torch() -> None:
    """`linear` runs other products for other strides, or where gradients are recorded."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
            self.attention = nn.MultiheadAttention(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(self.attention(h, h, h)[0])

    net, x = randomise(Net().double().eval(), 0), torch.randn(5, 2, 6).double()
    findings: Any = fxprune.analyze(net, x)
    keys = {key for walked in findings.walked for seen in walked.observations.values() for key in seen.outputs}
    assert {name for scope, _, name, _ in keys if scope == "attention"} >= {"linear()", "aten::bmm"}
    assert "aten::addmm" in {name for scope, _, name, _ in keys if scope == "attention|linear"}
    assert not {"aten::mm", "aten::addmm"} & {name for scope, _, name, _ in keys if scope == "attention"}
    small: Any = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is Net
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), reference(x), atol=1e-12)
