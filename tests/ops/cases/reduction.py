"""Rows of reductions: sums, statistics, softmax, orders."""

from __future__ import annotations

import torch

from tests.ops.cases.row import GONE, STATISTIC, SUMS, TOKENS, OpCase, difference, fn

REFUSED_STATISTICS = ("the result holds positions in this dimension or depends on their order",)

REDUCTIONS = [
    OpCase("sum over the channels", fn(lambda h: h.sum(1)), **GONE),
    OpCase("sum over the channels, kept", fn(lambda h: torch.sum(h, dim=1, keepdim=True)), **GONE),
    OpCase("sum over everything", fn(lambda h: h.sum()), **GONE),
    OpCase("sum over a sigmoid", fn(lambda h: h.sigmoid().sum(1)), **STATISTIC),
    OpCase("sum over a difference", fn(lambda h: (h.sigmoid() - h.cos()).sum(1)), **STATISTIC),
    OpCase("sum over a comparison", fn(lambda h: (h.cos() > h.sin()).double().sum(1)), **STATISTIC),
    OpCase("sum over a gate", fn(lambda h: (h * h.sigmoid()).sum(1)), **GONE),
    OpCase("sum over a ReLU", fn(lambda h: h.relu().sum(dim=1)), **GONE),
    OpCase("sum over space", fn(lambda h: h.sum((2, 3)))),
    OpCase("mean over the channels", fn(lambda h: h.mean(1)), **STATISTIC),
    OpCase("mean over the channels, kept", fn(lambda h: h - h.mean(1, keepdim=True)), expect="inexact"),
    OpCase("mean over space", fn(lambda h: h.mean([2, 3]))),
    OpCase("mean over space, kept", fn(lambda h: torch.mean(h, (-2, -1), keepdim=True))),
    OpCase("mean over tokens", fn(lambda h: h.mean(dim=1)), TOKENS, axis=-1, out=1),
    OpCase("amax over the channels", fn(lambda h: h.amax(1)), **STATISTIC),
    OpCase("amax over space", fn(lambda h: torch.amax(h, dim=(2, 3)))),
    OpCase("max over the channels", fn(lambda h: h.max(1)[0]), **STATISTIC),
    OpCase("max over the channels, named", fn(lambda h: torch.max(h, dim=1).values), **STATISTIC),
    OpCase("max over space", fn(lambda h: h.flatten(2).max(-1)[0])),
    OpCase("min over the channels", fn(lambda h: torch.min(h, 1)[0]), **STATISTIC),
    OpCase("amin over space", fn(lambda h: h.amin(-1))),
    OpCase("median over the channels", fn(lambda h: h.median(1)[0]), **STATISTIC),
    OpCase("var over the channels", fn(lambda h: h.var(1)), **STATISTIC),
    OpCase("var over space", fn(lambda h: h.var((2, 3), unbiased=False))),
    OpCase("std over the channels, kept", fn(lambda h: h / h.std(1, keepdim=True)), expect="inexact"),
    OpCase("std over space", fn(lambda h: torch.std(h, dim=2))),
    OpCase("var_mean over space", fn(lambda h: difference(torch.var_mean(h, dim=(2, 3))))),
    OpCase("norm over the channels", fn(lambda h: h.norm(dim=1)), **GONE),
    OpCase("norm of order 1 over the channels", fn(lambda h: h.norm(p=1, dim=1)), **GONE),
    OpCase("norm of order inf over the channels", fn(lambda h: h.norm(p=float("inf"), dim=1)), **STATISTIC),
    OpCase("norm of a sigmoid", fn(lambda h: torch.linalg.vector_norm(h.sigmoid(), dim=1)), **STATISTIC),
    OpCase("norm over space", fn(lambda h: torch.linalg.vector_norm(h, dim=(2, 3)))),
    OpCase(
        "global response norm",
        fn(lambda h, gamma: _response(h, gamma), gamma=(11,)),
        expect="inexact",
        loses=("producer.weight[0]", "op.gamma[0]"),
    ),
    OpCase("logsumexp over the channels", fn(lambda h: h.logsumexp(1)), **STATISTIC),
    OpCase("prod over the channels", fn(lambda h: h.prod(1)), **STATISTIC),
    OpCase("prod over space", fn(lambda h: h.prod(2))),
    OpCase("count_nonzero over the channels", fn(lambda h: h.relu().count_nonzero(1).double()), **STATISTIC),
    OpCase("any over the channels", fn(lambda h: (h > 1).any(1).double()), **STATISTIC),
    OpCase("any is true", fn(lambda h: h * torch._is_any_true(h > 1).double()), expect="inexact"),
    OpCase("all are true", fn(lambda h: h * torch._is_all_true(h == h).double()), expect="inexact"),
    OpCase("all over space", fn(lambda h: (h > -1).all(-1).double())),
    OpCase("aminmax over space", fn(lambda h: difference(torch.aminmax(h, dim=2)))),
    OpCase("logcumsumexp over the channels", fn(lambda h: h.logcumsumexp(1)), expect="inexact"),
    OpCase("logcumsumexp over space", fn(lambda h: h.logcumsumexp(2))),
    OpCase("cumsum over the channels", fn(lambda h: h.cumsum(1)), mixes=SUMS),
    OpCase("cumsum of a sigmoid", fn(lambda h: torch.cumsum(h.sigmoid(), dim=1)), expect="inexact"),
    OpCase("cumsum over space", fn(lambda h: h.cumsum(-1))),
    OpCase(
        "cumprod over the channels",
        fn(lambda h: h.cumprod(1)),
        expect="inexact",
    ),
    OpCase(
        "argmax over the channels",
        fn(lambda h: h.argmax(1).double()),
        expect="refused",
        says=("aten::argmax", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase(
        "argmin over the channels",
        fn(lambda h: torch.argmin(h, dim=1).double()),
        expect="refused",
        says=("aten::argmin", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase("argmax over space", fn(lambda h: h.flatten(2).argmax(-1).double())),
    OpCase("sort", fn(lambda h: h.sort(1)[0]), expect="refused", says=("aten::sort", *REFUSED_STATISTICS)),
    OpCase("sort over space", fn(lambda h: torch.sort(h, dim=-1)[0])),
    OpCase("topk", fn(lambda h: h.topk(3, 1)[0]), expect="inexact", **GONE),
    OpCase("topk over space", fn(lambda h: h.topk(3, dim=-1)[0])),
    OpCase(
        "kthvalue",
        fn(lambda h: h.kthvalue(2, 1)[0]),
        expect="refused",
        says=("aten::kthvalue", *REFUSED_STATISTICS),
        out=None,
    ),
    OpCase("cummax", fn(lambda h: h.cummax(1)[0]), expect="refused", says=("aten::cummax", *REFUSED_STATISTICS)),
]


def _response(h: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    size = h.norm(dim=(2, 3), keepdim=True)
    return h * (1 + gamma.view(1, -1, 1, 1) * size / (size.mean(1, keepdim=True) + 1e-6))
