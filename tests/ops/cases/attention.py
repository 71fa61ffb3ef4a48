"""Rows of fused attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.cases.row import INSIDE, SUMS, OpCase, fn

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

attend = F.scaled_dot_product_attention

HEADS: dict[str, Any] = {"shape": (2, 4, 5, 3), "axis": 1, "out": 1}

WIDTH: dict[str, Any] = {"shape": (2, 4, 5, 11), "axis": -1}


def _heads(h: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    return h.view(h.shape[0], h.shape[1], heads, width).transpose(1, 2)


def _qkv(h: torch.Tensor, q: nn.Module, k: nn.Module, v: nn.Module, mask: Any = None) -> torch.Tensor:
    y = attend(_heads(q(h), 4, 3), _heads(k(h), 4, 3), _heads(v(h), 4, 3), mask)
    return y.transpose(1, 2).reshape(2, 5, 12)


QKV: dict[str, Any] = {part: (lambda: nn.Linear(11, 12)) for part in "qkv"}

QKV_LOSSES = tuple(f"op.{part}.{end}" for part in "qkv" for end in ("weight[0]", "weight[1]", "bias[0]"))

ATTENTION = [
    OpCase("attention kernel, heads", fn(lambda h: flash(h, h.sin(), h.cos(), scale=0.4)[0]), **HEADS),
    OpCase("attention, heads", fn(lambda h: attend(h, h.sin(), h.cos())), **HEADS),
    OpCase("attention, logarithms of the sums", fn(lambda h: flash(h, h.sin(), h, scale=0.4)[1]), **HEADS),
    OpCase(
        "attention, a bias per head",
        fn(lambda h, bias: attend(h, h.sin(), h, bias), bias=(1, 4, 5, 5)),
        **HEADS,
        loses=("producer.weight[0]", "op.bias[1]"),
    ),
    OpCase("attention, one bias", fn(lambda h, bias: attend(h, h.sin(), h, bias), bias=(5, 5)), **HEADS),
    OpCase(
        "attention, a mask", fn(lambda h, m: attend(h, h.sin(), h, m), m=torch.ones(1, 1, 5, 5).tril() > 0), **HEADS
    ),
    OpCase("attention, causal", fn(lambda h: attend(h, h.sin(), h.cos(), is_causal=True)), **HEADS),
    OpCase("attention, the batch", fn(lambda h: attend(h, h.sin(), h)), (11, 4, 5, 3), axis=0, out=0),
    OpCase(
        "attention, width of the queries",
        fn(lambda h, k, v: attend(h, k, v), k=(2, 4, 5, 11), v=(2, 4, 5, 11)),
        **WIDTH,
        out=1,
        mixes=SUMS,
        loses=("producer.weight[0]", "op.k[3]"),
    ),
    OpCase(
        "attention, width of the values",
        fn(lambda h, q, k: attend(q, k, h), q=(2, 4, 5, 11), k=(2, 4, 5, 11)),
        **WIDTH,
        out=-1,
        loses=("producer.weight[0]", "consumer.weight[1]"),
    ),
    OpCase(
        "attention, widths of their own from the start",
        fn(lambda h, q, k: attend(q, k, h), q=(2, 4, 5, 7), k=(2, 4, 5, 7)),
        **WIDTH,
        out=-1,
    ),
    OpCase(
        "sum over the heads of attention",
        fn(lambda h: attend(h, h.sin(), h).sum(1)),
        (2, 4, 5, 3),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "attention, prompts before the keys",
        fn(
            lambda h, k, v: attend(h, torch.cat([k, h.sin()], 2), torch.cat([v, h.cos()], 2), scale=0.5),
            k=(2, 4, 7, 3),
            v=(2, 4, 7, 3),
        ),
        **HEADS,
        expect="inexact",
        loses=("producer.weight[0]", "op.k[2]", "op.v[2]"),
    ),
    OpCase(
        "attention, learned queries",
        fn(lambda h, q: attend(q, h.sin(), h).transpose(1, 2), q=(2, 4, 7, 3)),
        (2, 4, 5, 3),
        out=2,
        loses=("producer.weight[0]", "op.q[1]"),
    ),
    OpCase(
        "attention, learned queries and causal",
        fn(lambda h, q: attend(q, q.sin(), q, is_causal=True) + 0 * h, q=(2, 4, 7, 3)),
        (2, 4, 7, 3),
        "refused",
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "causal attention compares positions"),
        axis=2,
        loses=("op.q[2]",),
        out=None,
        mixes="the axis is held by the queries",
    ),
    OpCase(
        "attention, shared keys",
        fn(lambda h, k: attend(h, k, k.sin(), enable_gqa=True), k=(2, 3, 5, 7)),
        (2, 12, 5, 7),
        loses=("producer.weight[0]", "op.k[1]"),
    ),
    OpCase(
        "attention, one key for all heads",
        fn(lambda h, k: attend(h, k, k.sin(), enable_gqa=True), k=(2, 1, 5, 7)),
        (2, 4, 5, 7),
    ),
    OpCase(
        "attention with projections",
        fn(_qkv, **QKV),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", *QKV_LOSSES),
    ),
    OpCase(
        "attention with projections and a bias per head",
        fn(lambda h, mask, **layers: _qkv(h, mask=mask, **layers), mask=(1, 4, 5, 5), **QKV),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", "op.mask[1]", *QKV_LOSSES),
    ),
    OpCase(
        "attention with shared keys and projections",
        fn(
            lambda h, q, k, v: (
                attend(_heads(q(h), 4, 3), _heads(k(h), 2, 3), _heads(v(h), 2, 3), enable_gqa=True)
                .transpose(1, 2)
                .reshape(2, 5, 12)
            ),
            q=lambda: nn.Linear(11, 12),
            k=lambda: nn.Linear(11, 6),
            v=lambda: nn.Linear(11, 6),
        ),
        (2, 5, 11),
        axis=-1,
        out=-1,
        mixes=INSIDE,
        loses=("producer.weight[0]", *QKV_LOSSES),
    ),
]
