"""Integers in the graph that stand for positions: slice bounds, `select`, shifts and paddings.

A position becomes a rank among the kept slots of the dimension in which it stands.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from fxprune.channels.groups import Bools
from fxprune.channels.vector import Vector
from fxprune.errors import RewriteError
from fxprune.ops import Operand
from fxprune.rewrite.sizes import Site, padding, rank, resizes

aten = torch.ops.aten


@resizes("narrow", torch.narrow, aten.narrow.default)
def _narrow(site: Site) -> None:
    dim = site.value(site.argument(1, "dim"))
    kept = site.removal.kept(site.input.dim(dim))
    if kept is None:
        return
    start = _old(site, site.argument(2, "start"))
    site.put(2, "start", rank(kept, start % len(kept)))
    site.put(3, "length", site.removal.count(site.output.dim(dim)))


@resizes("select", torch.select, aten.select.int)
def _select(site: Site) -> None:
    dim = site.value(site.argument(1, "dim"))
    kept = site.removal.kept(site.input.dim(dim))
    if kept is not None:
        site.put(2, "index", rank(kept, _old(site, site.argument(2, "index")) % len(kept)))


def _old(site: Site, value: Any) -> int:
    """A position as it was in the old graph, written as a number or computed from sizes."""
    old = site.operand(value)
    if not isinstance(old, int):
        raise RewriteError(
            "a position that is neither a number nor computed from sizes",
            node=site.before.name,
            at=f"node %{site.node.name}: {site.node.format_node()}",
            do="write the position as a number, or ignore the layers before it",
        )
    return old


@resizes("roll", torch.roll, aten.roll.default)
def _roll(site: Site) -> None:
    shifts, dims = site.argument(1, "shifts"), site.argument(2, "dims")
    if dims is None or len(dims if isinstance(dims, (list, tuple)) else (dims,)) == 0:
        return
    several = isinstance(shifts, (list, tuple))
    kept = {d: site.removal.kept(v) for d, v in enumerate(site.input.vectors)}
    new = []
    for shift, dim in zip(
        shifts if several else [shifts], dims if isinstance(dims, (list, tuple)) else [dims], strict=True
    ):
        d = dim % site.input.ndim
        slots = kept[d]
        if slots is None:
            new.append(shift)
        else:  # the last `steps` slots come to the front: as many as are left of them
            steps = _old(site, shift) % len(slots)
            new.append(int(slots[len(slots) - steps :].sum()))
            kept[d] = np.roll(slots, steps)
    site.put(1, "shifts", type(shifts)(new) if several else new[0])


@resizes(F.pad, aten.pad.default, aten.constant_pad_nd.default)
def _pad(site: Site) -> None:
    pad = site.argument(1, "pad")
    if not isinstance(pad, (list, tuple)):
        return
    new = padding(site.removal, site.input, site.output, [site.operand(p) for p in pad])
    site.put(1, "pad", type(pad)(p if site.value(p) == n else n for p, n in zip(pad, new, strict=True)))


@resizes("index_select", torch.index_select, aten.index_select.default)
def _index_select(site: Site) -> None:
    """A list held by a buffer is renumbered with the buffer; there is nothing to do in the graph."""


@resizes(operator.getitem)
def _getitem(site: Site) -> None:
    source = site.operand(site.node.args[0])
    if not isinstance(source, Operand):
        return
    index = site.node.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    if not isinstance(site.output, Operand):
        return
    consumed = sum(_width(site, item) for item in items)
    new: list[Any] = []
    dim = 0
    for item in items:
        if item is Ellipsis:
            new.append(item)
            dim += source.ndim - consumed
            continue
        width = _width(site, item)
        new.append(_item(site, item, source.vectors[dim]) if width == 1 else item)
        dim += width
    changed: Any = tuple(new) if isinstance(index, tuple) else new[0]
    if not _same_items(changed, index):
        site.node.update_arg(1, changed)


def _width(site: Site, item: Any) -> int:
    """How many dimensions an index item takes up."""
    if item is None or item is Ellipsis:
        return 0
    value = site.value(item) if isinstance(item, fx.Node) else item
    return int(value.ndim) if isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8) else 1


def _item(site: Site, item: Any, vector: Vector) -> Any:
    kept = site.removal.kept(vector)
    if kept is None:
        return item
    if isinstance(item, slice):
        return _slice(site, item, kept)
    if isinstance(site.operand(item), int):
        return rank(kept, site.operand(item) % len(kept))
    if isinstance(item, (list, tuple)):
        positions = np.asarray(item) % len(kept)
        ranks = np.cumsum(kept) - 1
        return type(item)(ranks[positions[kept[positions]]].tolist())
    return item


def _slice(site: Site, item: slice, kept: Bools) -> slice:
    """The same stretch among the kept slots. An open end stays open, a bound counted from the end stays so."""
    size = len(kept)
    left = int(kept.sum())

    def bound(value: Any) -> Any:
        if value is None:
            return None
        number = _old(site, value)
        if isinstance(value, fx.Node) and number == site.value(value):
            raise RewriteError(
                "a position follows the size of an input, in a dimension that would shrink",
                node=site.before.name,
                at=f"node %{site.node.name}: {site.node.format_node()}",
                why="other inputs may reach the slots that the example does not",
                do="ignore what is sliced there",
            )
        if number < 0:
            new = rank(kept, max(0, size + number)) - left
            return new if new else left
        return rank(kept, min(number, size))

    if item.step is not None and site.value(item.step) != 1:  # whole periods went: the phase stays what it was
        first, last, _ = slice(*(site.operand(part) for part in (item.start, item.stop, item.step))).indices(size)
        return slice(item.start and first, None if last == size else rank(kept, last), item.step)
    return slice(bound(item.start), bound(item.stop), item.step)


@resizes(aten.slice.Tensor)
def _aten_slice(site: Site) -> None:
    """As `x[start:end:step]` of one dimension; an end that stands for "to the last one" stays as it is written."""
    dim = site.value(site.argument(1, "dim", 0))
    kept = site.removal.kept(site.input.dim(dim))
    if kept is None:
        return
    start, end, step = site.argument(2, "start"), site.argument(3, "end"), site.argument(4, "step", 1)
    whole = isinstance(end, int) and end >= sys.maxsize
    new = _slice(site, slice(start, None if whole else end, step), kept)
    if not _same_items(new.start, start):
        site.put_anyway(2, "start", new.start)
    if not _same_items(new.stop, None if whole else end):
        site.put_anyway(3, "end", new.stop)


def _same_items(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same_items(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, slice) and isinstance(b, slice):
        return all(_same_items(x, y) for x, y in ((a.start, b.start), (a.stop, b.stop), (a.step, b.step)))
    return a is b or (type(a) is type(b) and not isinstance(a, fx.Node) and bool(a == b))
