"""Rows of operations that index: by lists, by tensors, by masks; gathering and scattering."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from tests.ops.cases.row import ENTRIES, EVEN, FLAT, IMAGE, LAST, SEQUENCE, OpCase, fn

OVERWRITTEN = "what is overwritten moves nothing"
PERIODS = "only whole periods of a step can be removed"
TOKEN_LIST = torch.tensor([3, 0, 4])


def _tokens(x: torch.Tensor) -> torch.Tensor:
    return x[..., :1] > 0


@torch.fx.wrap
def _added(h: torch.Tensor, at: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return h.sin().transpose(0, 1).index_put_((at,), source.transpose(0, 1), accumulate=True).transpose(0, 1)


@torch.fx.wrap
def _listed(h: torch.Tensor) -> torch.Tensor:
    return h.index_add(1, torch.tensor([3, 0, 4]), h[:, :3])


def _expanded(at: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return at.view(1, -1, 1).expand(2, 3, h.shape[-1])


def _all(at: torch.Tensor) -> torch.Tensor:
    return at.unsqueeze(-1).repeat(2, 1, 7)


@torch.fx.wrap
def _set(h: torch.Tensor, where: Any, what: Any) -> torch.Tensor:
    h = h.tanh()
    h[where] = what
    return h


@torch.fx.wrap
def _index_reduce(h: torch.Tensor, at: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a beta
        return h.index_reduce(1, at, source, "prod")


INDEXING = [
    *(
        OpCase(f"{name} of tokens", fn(function, at=TOKEN_LIST), **LAST)
        for name, function in (
            ("scatter", lambda h, at: h.sin().scatter(1, _expanded(at, h), h[:, :3].cos())),
            ("scatter_", lambda h, at: torch.zeros_like(h).scatter_(1, _expanded(at, h), h[:, 1:4])),
            ("scatter of a number", lambda h, at: h.sin().scatter(1, _expanded(at, h), 0.3)),
            ("scatter with a product", lambda h, at: h.scatter(1, _expanded(at, h), 1.7, reduce="multiply")),
            ("scatter_add", lambda h, at: h.scatter_add(1, _expanded(at, h), h[:, 1:4].exp())),
            ("scatter_add_", lambda h, at: torch.zeros_like(h).scatter_add_(1, _expanded(at, h), h[:, 1:4])),
            ("scatter_reduce", lambda h, at: h.scatter_reduce(1, _expanded(at, h), h[:, 1:4].exp(), "amax")),
            (
                "scatter_reduce without itself",
                lambda h, at: h.scatter_reduce(1, _expanded(at, h), h[:, 1:4], "mean", include_self=False),
            ),
            ("index_add", lambda h, at: h.index_add(1, at, h[:, 1:4].exp(), alpha=0.5)),
            ("index_copy", lambda h, at: h.index_copy(1, at, h[:, 1:4].exp())),
            ("index_reduce", lambda h, at: _index_reduce(h, at, h[:, 1:4].exp())),
            ("index_fill", lambda h, at: h.index_fill(1, at, 0.7)),
            ("index_fill by a tensor", lambda h, at: h.index_fill(1, at, torch.tensor(0.7).double())),
            ("index_put", lambda h, at: h.index_put((torch.tensor(1), at), h[0, 1:4].exp())),
            ("index_put, accumulated", lambda h, at: h.index_put((torch.tensor(1), at), h[0, 1:4], accumulate=True)),
            ("set by a list", lambda h, at: _set(h, (slice(None), at), h[:, 1:4])),
            ("set by two lists", lambda h, at: _set(h, ([0, 1, 1], at), h[0, 1:4].exp())),
            ("set to a number by a list", lambda h, at: _set(h, (slice(None), at), 0.0)),
            ("select_scatter", lambda h, at: h.select_scatter(h[:, 1].exp(), 1, 3)),
            ("slice_scatter", lambda h, at: h.slice_scatter(h[:, 1:3].exp(), 1, 3)),
            ("slice_scatter, every second", lambda h, at: h.slice_scatter(h[:, :3].exp(), 1, 0, 5, 2)),
            ("index of tokens by a list and a number", lambda h, at: h[1, at]),
        )
    ),
    OpCase("set where positive", fn(lambda h: _set(h, h > 0.4, -0.2))),
    OpCase(
        "set where positive, one value for every pixel", fn(lambda h: _set(h, h > 0.4, torch.tensor([0.5]).double()))
    ),
    OpCase(
        "set to zero by a mask of pixels",
        fn(lambda h, mask: _set(h, (slice(None), slice(None), mask), 0.0), mask=torch.rand(5, 7) > 0.5),
    ),
    OpCase(
        "set by a mask of channels",
        fn(
            lambda h, mask: _set(h.transpose(0, 1), mask, torch.ones(4, 2).double()),
            mask=torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1]) > 0,
        ),
        (2, 11),
        "refused",
        ("aten::index_put_", "written to at positions"),
        out=0,
    ),
    OpCase(
        "set of positions by a mask to a tensor of values",
        fn(
            lambda h, mask: _set(h, (slice(None), slice(None), mask), h[:, :, :2].exp()),
            mask=torch.tensor([False, True, False, True, False, False, False]),
        ),
        SEQUENCE,
    ),
    OpCase(
        "index by two lists with a dimension between",
        fn(
            lambda h, a, b: h[:, :, a].permute(2, 1, 0, 3)[[0, 1], :, :, b],
            a=torch.tensor([0, 4]),
            b=torch.tensor([6, 1]),
        ),
    ),
    OpCase(
        "index by lists that broadcast",
        fn(lambda h, a, b: h[:, :, a, b], a=torch.tensor([[0], [4]]), b=torch.tensor([6, 1, 1])),
    ),
    OpCase(
        "scatter at channels that follow from the input",
        fn(lambda h: h.scatter(1, (h[:, :3] > 0).long(), 0.0)),
        SEQUENCE,
        expect="refused",
        says=("aten::scatter", "written to at positions"),
    ),
    OpCase(
        "scatter at channels that differ between the samples",
        fn(lambda h, at: h.scatter(1, at, 0.0), at=torch.tensor([[3, 0, 4], [1, 0, 5]])),
        FLAT,
        expect="refused",
        says=("aten::scatter", "written to at positions"),
    ),
    *(
        OpCase(
            f"{name} at constant channels for all samples",
            fn(function, at=TOKEN_LIST, source=(2, 3, 7)),
            SEQUENCE,
            loses=("producer.weight[0]", "op.at[0]", "op.source[1]"),
            ties=OVERWRITTEN if name.startswith("scatter of") else "",
        )
        for name, function in (
            ("scatter of values", lambda h, at, source: h.scatter(1, at[:, None].expand_as(source), source)),
            ("scatter_add", lambda h, at, source: h.scatter_add(1, at.view(1, -1, 1).expand_as(source), source)),
            ("scatter_add_ of zeros", lambda h, at, source: h + torch.zeros_like(h).scatter_add_(1, _all(at), source)),
            ("scatter_reduce", lambda h, at, source: h.scatter_reduce(1, _all(at.int().long()), source, "sum")),
        )
    ),
    OpCase(
        "scatter of a number at constant channels",
        fn(lambda h, at: h.scatter(1, _all(at), 0.0), at=TOKEN_LIST),
        SEQUENCE,
        loses=("producer.weight[0]", "op.at[0]"),
        ties=OVERWRITTEN,
    ),
    OpCase(
        "gather at constant channels for all samples",
        fn(lambda h, at: h.gather(1, _all(at)), at=torch.tensor([3, 0, 4, 9, 3])),
        SEQUENCE,
        loses=("producer.weight[0]", "op.at[0]"),
    ),
    OpCase(
        "scatter of some channels",
        fn(lambda h, at: h.scatter(2, at, 1.0), at=torch.zeros(2, 4, 3, 7, dtype=torch.int64)),
        expect="refused",
        says=("aten::scatter", "written to at positions"),
    ),
    *(
        OpCase(
            f"{name} at constant channels",
            fn(function, at=TOKEN_LIST, source=(2, 3, 5, 7)),
            loses=("producer.weight[0]", "op.at[0]", "op.source[1]"),
            ties=OVERWRITTEN if name in ("index_copy", "index_put", "set by a list") else "",
        )
        for name, function in (
            ("index_add", lambda h, at, source: h.index_add(1, at, source, alpha=0.5)),
            ("index_add_ of zeros", lambda h, at, source: h.sin() + torch.zeros_like(h).index_add_(1, at, source)),
            ("index_copy", lambda h, at, source: h.index_copy(1, at, source)),
            ("index_reduce", lambda h, at, source: _index_reduce(h, at, source)),
            ("index_put", lambda h, at, source: h.transpose(0, 1).index_put((at,), source[0, :, None]).transpose(0, 1)),
            ("set by a list", lambda h, at, source: _set(h, (slice(None), at), source)),
            ("set and added", lambda h, at, source: _added(h, at, source)),
        )
    ),
    OpCase(
        "index_add at channels that repeat",
        fn(
            lambda h, at, source: h.index_add(1, at, source),
            at=torch.tensor([3, 0, 3, 7, 9, 3]),
            source=(2, 6, 5, 7),
        ),
        loses=("producer.weight[0]", "op.at[0]", "op.source[1]"),
    ),
    OpCase(
        "set at constant channels to a value for each token",
        fn(lambda h, at: _set(h, (slice(None), at), h.new_ones(1, 5, 7)), at=TOKEN_LIST),
        loses=("producer.weight[0]", "op.at[0]"),
        ties=OVERWRITTEN,
    ),
    *(
        OpCase(
            f"index_fill at constant channels by {value}",
            fn(lambda h, at, value=value: h.index_fill(1, at, value), at=TOKEN_LIST),
            loses=("producer.weight[0]", "op.at[0]"),
            ties=OVERWRITTEN,
        )
        for value in (0.0, 0.7)
    ),
    OpCase(
        "index_add at channels that the code lists",
        fn(lambda h: _listed(h)),
        expect="refused",
        says=("aten::index_add", "written to at positions"),
    ),
    OpCase(
        "index_fill at channels that follow from the input",
        fn(lambda h: h.index_fill(1, (h[0, :2, 0, 0] > 0).long(), 0.0)),
        expect="refused",
        says=("aten::index_fill", "written to at positions"),
    ),
    OpCase(
        "set of some channels by a list",
        fn(lambda h: _set(h, (slice(None), [1, 4]), 0.0)),
        expect="refused",
        says=("aten::index_put_", "written to at positions"),
    ),
    *(
        OpCase(name, fn(function), shape, takes_input=takes_input, ties=ties)
        for name, function, shape, takes_input, ties in (
            ("select_scatter of the channels", lambda h: h.select_scatter(h[:, 1], 1, 3), IMAGE, False, ""),
            ("select_scatter, counted from the end", lambda h, x: h.select_scatter(x[:, 1], 1, -2), IMAGE, True, ""),
            (
                "select_scatter by keywords",
                lambda h: torch.select_scatter(h.exp(), h.sin()[:, 4], dim=1, index=0),
                IMAGE,
                False,
                "",
            ),
            ("slice_scatter of the channels", lambda h: h.slice_scatter(h[:, 1:3], 1, 3, 5), IMAGE, False, OVERWRITTEN),
            ("slice_scatter of the input", lambda h, x: h.slice_scatter(x[:, :2], 1, 2, 4), IMAGE, True, ""),
            (
                "slice_scatter of the first channels",
                lambda h: h.slice_scatter(h[:, :4].exp(), dim=1, end=4),
                IMAGE,
                False,
                "",
            ),
            (
                "slice_scatter of the last channels",
                lambda h: torch.slice_scatter(h, h.sin()[:, -3:], 1, -3),
                IMAGE,
                False,
                "",
            ),
            (
                "slice_scatter of every third channel",
                lambda h: h.slice_scatter(h[:, 1::3].exp(), 1, 1, None, 3),
                EVEN,
                False,
                PERIODS,
            ),
        )
    ),
    OpCase(
        "slice_scatter of every second channel of 11",
        fn(lambda h: h.slice_scatter(h[:, ::2].exp(), 1, 0, None, 2)),
        expect="refused",
        says=("aten::slice", "slice with step 2 that covers no whole number of periods"),
    ),
    OpCase(
        "diagonal_scatter of the channels",
        fn(lambda h: h.diagonal_scatter(h[:, 0], 0, 1, 2)),
        (2, 11, 11),
        "refused",
        ("aten::diagonal_scatter", "written to at positions"),
    ),
    OpCase("diagonal_scatter of space", fn(lambda h: h.diagonal_scatter(h[:, :, 0, :5].exp(), 0, -2, -1))),
    *(
        OpCase(
            f"masked_scatter of whole rows {name}",
            fn(function, rows=(10, 11)),
            **LAST,
            takes_input=True,
            loses=("producer.weight[0]", "op.rows[1]"),
        )
        for name, function in (
            ("by an expanded mask", lambda h, x, rows: h.masked_scatter(_tokens(x).expand_as(h), rows)),
            ("by a mask that is broadcast", lambda h, x, rows: h.masked_scatter(_tokens(x), rows)),
            ("from a flat tensor", lambda h, x, rows: h.masked_scatter(_tokens(x).expand_as(h), rows.flatten())),
            ("from a batch", lambda h, x, rows: h.masked_scatter(_tokens(x).expand_as(h), rows.view(2, 5, 11))),
            ("in place", lambda h, x, rows: h.sin().masked_scatter_(_tokens(x).expand_as(h), rows)),
        )
    ),
    OpCase(
        "masked_scatter of whole pixels",
        fn(
            lambda h, x, rows: h.permute(0, 2, 3, 1).masked_scatter((x[:, 0] > 0)[..., None], rows).permute(0, 3, 1, 2),
            rows=(70, 11),
        ),
        takes_input=True,
        loses=("producer.weight[0]", "op.rows[1]"),
    ),
    OpCase(
        "masked_scatter of whole maps",
        fn(lambda h, x, maps: h.masked_scatter((x[:, :1, :1, :1] > 0).expand_as(h), maps), maps=(2, 11, 5, 7)),
        takes_input=True,
        ties=OVERWRITTEN,
        loses=("producer.weight[0]", "op.maps[1]"),
    ),
    OpCase(
        "masked_scatter",
        fn(lambda h: h.masked_scatter(h > 0, h.exp())),
        expect="refused",
        says=("aten::masked_scatter", "filled in order"),
    ),
    OpCase(
        "masked_scatter of whole maps from rows of space",
        fn(lambda h, x, rows: h.masked_scatter((x[:, :1, :1, :1] > 0).expand_as(h), rows), rows=(22, 35)),
        takes_input=True,
        expect="refused",
        says=("aten::masked_scatter", "filled in order"),
    ),
    OpCase(
        "masked_scatter of a row that is broadcast",
        fn(lambda h, x, rows: h[:1].masked_scatter(_tokens(x).expand(2, 5, 11), rows), rows=(10, 11)),
        **LAST,
        takes_input=True,
        expect="refused",
        says=("aten::masked_scatter", "filled in order"),
    ),
    OpCase(
        "take",
        fn(lambda h: h.take(torch.arange(9).view(1, 9) + h[:, :9].round().long().clamp(0, 2))),
        FLAT,
        "refused",
        ("aten::take", "positions in the flattened tensor"),
        out=None,
        mixes="the axis is gone",
    ),
    OpCase(
        "put",
        fn(lambda h, at: h.put(at, h[0, :3]), at=TOKEN_LIST),
        FLAT,
        "refused",
        ("aten::put", "positions in the flattened tensor"),
    ),
    OpCase(
        "take_along_dim of tokens",
        fn(lambda h: h.take_along_dim(h[..., :1].argsort(1)[:, :3], 1)),
        **LAST,
        mixes="one slot decides which tokens stay",
    ),
    OpCase(
        "index of pixels by a mask",
        fn(lambda h, mask: h[:, :, mask], mask=torch.arange(35).view(5, 7) % 3 == 1),
        mixes=ENTRIES,
    ),
    OpCase(
        "index of tokens by a mask",
        fn(lambda h, mask: h[mask], mask=torch.arange(10).view(2, 5) % 3 > 0),
        **{**LAST, "mixes": ENTRIES},
    ),
    OpCase(
        "index of channels by a mask",
        fn(lambda h, mask: h[:, mask], mask=torch.arange(11) % 3 == 1),
        expect="refused",
        says=("aten::index", "indexed by numbers that are not known"),
        mixes=ENTRIES,
    ),
    *(
        OpCase(name, fn(function), FLAT, "refused", (operator, "how many entries there are"), out=None, mixes=ENTRIES)
        for name, operator, function in (
            ("masked_select", "aten::masked_select", lambda h: h.masked_select(h > 0).sum()),
            ("nonzero", "aten::nonzero", lambda h: h.relu().nonzero().double().sum()),
            ("unique", "aten::_unique2", lambda h: h.round().unique().sum()),
            ("unique_consecutive", "aten::unique_consecutive", lambda h: h.round().unique_consecutive().sum()),
            ("bincount", "aten::bincount", lambda h: h.flatten().abs().long().bincount().double().sum()),
        )
    ),
    OpCase("one_hot", fn(lambda h: h * F.one_hot(h[0, :, 0, 0].round().long().clamp(0, 6), 7)[:, None].double())),
    OpCase(
        "isin",
        fn(lambda h: torch.isin(h.round(), torch.tensor([0.0, 1.0]).double()).double()),
    ),
    OpCase(
        "isin, looked for",
        fn(lambda h: torch.isin(torch.tensor([0.0, 1.0]).double(), h.round()).double()),
        FLAT,
        "refused",
        ("aten::isin", "the elements that are looked for"),
        out=None,
        mixes="the axis is gone",
    ),
]
