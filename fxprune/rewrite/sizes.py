"""Integers in the graph that stand for sizes: counted anew, at the place where they stand.

One function per operation, for every way of writing it: Python function, method, ATen overload. Each sees a `Site`
(the node, its old vectors, the values its arguments have in the new graph) and gives the node the arguments it needs.
An argument that already has the right value, computed from another tensor's size say, is left as it is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxprune.analysis.observed import Observation
from fxprune.channels.groups import Bools, Removal
from fxprune.ops import Operand

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """A node of the new graph that is about to run; `before` is the old graph's.

    value: what an argument evaluates to in the new graph. operand: what a node's result was in the old one.
    """

    node: fx.Node
    before: fx.Node
    removal: Removal
    output: Any
    observation: Observation
    value: Callable[[Any], Any]
    operand: Callable[[Any], Any]

    @property
    def input(self) -> Operand:
        """The operand of the first argument (`self` of a method, `input` of a function)."""
        node = self.node
        first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
        return self.operand(first)  # type: ignore[no-any-return]

    def counted(self, argument: str) -> tuple[int, ...]:
        """The new value of an integer argument that a rule counted."""
        return self.removal.shape(self.observation.counts[argument])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword, as it stands in the graph."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def put(self, position: int, name: str, new: Any) -> None:
        """Set an argument, unless it has that value already."""
        old = self.argument(position, name, _MISSING)
        if old is not _MISSING and _equal(self.value(old), new):
            return
        self.put_anyway(position, name, new)

    def put_sizes(self, position: int, name: str, sizes: Sequence[int]) -> None:
        """Set sizes that are written as one sequence or as several integers; -1 and right values stay."""
        old = self.argument(position, name)
        if isinstance(old, (list, tuple)):
            new = type(old)(_settle(self, o, s) for o, s in zip(old, sizes, strict=True))
            if new != old:
                self.put_anyway(position, name, new)
        elif isinstance(self.value(old), (list, tuple)):
            if tuple(self.value(old)) != tuple(sizes):
                self.put_anyway(position, name, tuple(sizes))
        else:
            rest = self.node.args[position:]
            self.node.args = (
                *self.node.args[:position],
                *(_settle(self, o, s) for o, s in zip(rest, sizes, strict=True)),
            )

    def put_anyway(self, position: int, name: str, new: Any) -> None:
        """Set an argument by position or keyword."""
        if len(self.node.args) > position:
            self.node.update_arg(position, new)
        else:
            self.node.update_kwarg(name, new)


class _Missing:
    pass


_MISSING = _Missing()

Resize = Callable[[Site], None]
_RESIZES: dict[Any, Resize] = {}


def resizes(*targets: Any) -> Callable[[Resize], Resize]:
    """Register how the sizes in the arguments of functions, or of methods by name, are counted anew."""

    def register(function: Resize) -> Resize:
        for target in targets:
            _RESIZES[target] = function
        return function

    return register


def resize(site: Site) -> None:
    """Give a node's size arguments their new values."""
    function = _RESIZES.get(site.node.target)
    if function is not None:
        function(site)
    else:
        _keep_numbers(site)


def _keep_numbers(site: Site) -> None:
    """A number that is computed from a size but is none (1 / sqrt(channels)) stays what it was."""
    arguments = (*site.node.args, *site.node.kwargs.values())
    if not any(isinstance(a, fx.Node) and isinstance(site.operand(a), Operand) for a in arguments):
        return

    def old_number(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            before, now = site.operand(argument), site.value(argument)
            if type(before) in (int, float) and before != now:
                return before
        return argument

    site.node.args = tuple(old_number(a) for a in site.node.args)
    site.node.kwargs = {name: old_number(a) for name, a in site.node.kwargs.items()}


def rank(kept: Bools | None, position: int) -> int:
    """The number of kept slots before `position`."""
    return position if kept is None else int(kept[:position].sum())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return bool(type(a) is type(b) and a == b)


def _settle(site: Site, old: Any, size: int) -> Any:
    value = site.value(old)
    return old if value in (-1, size) else size


def _one(output: Any) -> Operand | None:
    return output if isinstance(output, Operand) else None


@resizes(
    *("view", "reshape", "expand", "broadcast_to", torch.reshape, torch.broadcast_to),
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default),
    aten.broadcast_to.default,
)
def _shape(site: Site) -> None:
    output = _one(site.output)
    first = site.value(site.argument(1, "shape", site.argument(1, "size")))
    if output is None or first is None or isinstance(first, torch.dtype):
        return
    name = "shape" if "shape" in site.node.kwargs else "size"
    site.put_sizes(1, name, site.removal.shape(output.vectors))


@resizes(operator.mul)
def _factor(site: Site) -> None:
    """A number in a product of sizes (batch * heads): set here, so that the size where it is used stays a product."""
    numbers = [i for i, a in enumerate(site.node.args) if type(a) is int]
    if type(site.output) is not int or len(numbers) != 1:
        _keep_numbers(site)
        return
    (position,) = numbers
    number, other = site.node.args[position], site.node.args[1 - position]
    ratio = _ratio(site, site.node)
    before, now = site.operand(other), site.value(other)
    if ratio is not None and now and isinstance(number, int):
        new = number * ratio * Fraction(before, now)
        if new.denominator == 1:
            site.node.update_arg(position, int(new))


def _ratio(site: Site, product: fx.Node) -> Fraction | None:
    """By how much the sizes shrink that are a product, or a product of it: None where that is not one number."""
    ratios: set[Fraction | None] = set()
    for user in product.users:
        promised = site.operand(user)
        if user.target is operator.mul:
            ratios.add(_ratio(site, user))
        elif _RESIZES.get(user.target) is _shape and isinstance(promised, Operand):
            sizes = user.args[1] if len(user.args) == 2 and isinstance(user.args[1], (list, tuple)) else user.args[1:]
            if len(sizes) != promised.ndim or product not in sizes:
                return None
            for size, count, before in zip(sizes, site.removal.shape(promised.vectors), promised.shape, strict=True):
                if size is product and before:
                    ratios.add(Fraction(count, before))
        else:
            ratios.add(Fraction(1))
    return ratios.pop() if len(ratios) == 1 else None


@resizes("unflatten", torch.unflatten, aten.unflatten.int)
def _unflatten(site: Site) -> None:
    output = _one(site.output)
    dim = site.value(site.argument(1, "dim"))
    if output is None or not isinstance(dim, int):
        return
    added = output.ndim - site.input.ndim + 1
    first = dim % site.input.ndim
    site.put_sizes(2, "sizes", site.removal.shape(output.vectors[first : first + added]))


@resizes(
    *("new_zeros", "new_ones", "new_empty", "new_full"),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default, aten.new_full.default),
)
def _new(site: Site) -> None:
    if (output := _one(site.output)) is not None:
        site.put_sizes(1, "size", site.removal.shape(output.vectors))


@resizes(
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn),
    *(aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.full.default),
    *(aten.rand.default, aten.randn.default),
)
def _made(site: Site) -> None:
    if (output := _one(site.output)) is not None:
        site.put_sizes(0, "size", site.removal.shape(output.vectors))


@resizes(
    *("split", "split_with_sizes", torch.split, torch.split_with_sizes),
    *(aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default),
)
def _split(site: Site) -> None:
    name = "split_size_or_sections" if site.node.target is torch.split else "split_size"
    _into_parts(site, name, lambda whole, old: [min(old, whole - i) for i in range(0, whole, old)])


@resizes("chunk", torch.chunk, aten.chunk.default)
def _chunk(site: Site) -> None:
    def parts(whole: int, chunks: int) -> list[int]:
        size = -(-whole // chunks)
        return [min(size, whole - i) for i in range(0, whole, size)]

    _into_parts(site, "chunks", parts)


@resizes("tensor_split", torch.tensor_split, aten.tensor_split.sections, aten.tensor_split.indices)
def _tensor_split(site: Site) -> None:
    def parts(whole: int, sections: int) -> list[int]:
        return [whole // sections + (i < whole % sections) for i in range(sections)]

    _into_parts(site, "indices_or_sections", parts)


def _into_parts(site: Site, name: str, natural: Callable[[int, int], list[int]]) -> None:
    """Parts of the promised sizes: as it is written if that gives them, else an explicit list of split sizes."""
    dim = site.value(site.argument(2, "dim", 0))
    sizes = [site.removal.count(part.dim(dim)) for part in site.output]
    old = site.value(site.argument(1, name, site.argument(1, "split_sizes")))
    is_tensor_split = getattr(site.node.target, "__name__", str(site.node.target)).startswith("tensor_split")
    if isinstance(old, int):
        if natural(sum(sizes), old) == sizes:
            return
    elif not is_tensor_split and list(old) == sizes:
        return
    node = site.node
    if node.op == "call_method":
        node.target = "split"
        node.args, node.kwargs = (node.args[0], sizes), {"dim": site.argument(2, "dim", 0)}
    elif isinstance(node.target, torch._ops.OpOverload):
        node.args, node.kwargs = (node.args[0], sizes, site.argument(2, "dim", 0)), {}
        node.target = aten.split_with_sizes.default
    else:
        dim_argument = site.argument(2, "dim", 0)
        tensor = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
        node.target, node.args, node.kwargs = torch.split, (tensor, sizes), {"dim": dim_argument}


@resizes("repeat", "tile", torch.tile, aten.repeat.default, aten.tile.default)
def _repeat(site: Site) -> None:
    output, source = site.output, site.input
    sizes = site.removal.shape(output.vectors)
    pad = output.ndim - source.ndim
    name = "dims" if site.node.target in ("tile", torch.tile, aten.tile.default) else "repeats"
    first = site.argument(1, name)
    old = first if isinstance(first, (list, tuple)) else site.node.args[1:]
    if len(old) != output.ndim:  # tile with fewer numbers than dimensions leaves the first ones alone
        old = (1,) * (output.ndim - len(old)) + tuple(old)
    new = []
    for d, times in enumerate(old):
        size = site.removal.count(source.dim(d - pad)) if d >= pad else 1
        new.append(times if sizes[d] == site.value(times) * size else sizes[d] // size)
    if list(new) != list(old):
        site.node.args, site.node.kwargs = (site.node.args[0] if site.node.args else site.node.kwargs["input"], new), {}


@resizes("repeat_interleave", torch.repeat_interleave, aten.repeat_interleave.self_int)
def _repeat_interleave(site: Site) -> None:
    """Each slot as often as there are kept repetitions of it: the new sizes' quotient."""
    if isinstance(site.value(site.argument(1, "repeats")), int):
        output, source = (math.prod(site.removal.shape(o.vectors)) for o in (site.output, site.input))
        site.put(1, "repeats", output // source)


@resizes("squeeze", torch.squeeze, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(site: Site) -> None:
    """A dimension that has become 1 is not squeezed where it was not before."""
    given = site.argument(1, "dim")
    every = range(site.input.ndim) if given is None else (given,) if isinstance(given, int) else given
    dims = [d % site.input.ndim for d in every]
    if any(site.removal.count(site.input.dim(d)) == 1 < site.input.dim(d).size for d in dims):
        site.put(1, "dim", tuple(d for d in dims if site.input.dim(d).size == 1))
        if isinstance(site.node.target, torch._ops.OpOverload):
            site.node.args, site.node.kwargs = (site.node.args[0], site.argument(1, "dim")), {}
            site.node.target = aten.squeeze.dims


_CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
)


@resizes(*_CONVOLUTIONS)
def _convolution(site: Site) -> None:
    groups = site.counted("groups")[0]
    if site.value(site.argument(6, "groups", 1)) != groups:
        site.put(6, "groups", groups)


@resizes(aten.convolution.default)
def _aten_convolution(site: Site) -> None:
    site.put(8, "groups", site.counted("groups")[0])


@resizes(F.group_norm, torch.group_norm, aten.group_norm.default)
def _group_norm(site: Site) -> None:
    site.put(1, "num_groups", site.counted("group")[0])


@resizes(aten.native_group_norm.default)
def _native_group_norm(site: Site) -> None:
    for position, name in enumerate(("N", "C", "HxW", "group"), start=3):
        site.put(position, name, site.counted(name)[0])


@resizes(F.layer_norm, torch.layer_norm, aten.layer_norm.default, aten.native_layer_norm.default)
def _layer_norm(site: Site) -> None:
    site.put_sizes(1, "normalized_shape", site.counted("normalized_shape"))


@resizes(F.rms_norm, torch.rms_norm, aten.rms_norm.default, aten._fused_rms_norm.default)
def _rms_norm(site: Site) -> None:
    count = len(site.value(site.argument(1, "normalized_shape")))
    site.put_sizes(1, "normalized_shape", site.removal.shape(site.input.vectors[-count:]))


@resizes(
    *(F.channel_shuffle, torch.channel_shuffle, torch.native_channel_shuffle),
    *(aten.channel_shuffle.default, aten.native_channel_shuffle.default),
)
def _channel_shuffle(site: Site) -> None:
    site.put(1, "groups", site.counted("groups")[0])


@resizes(F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default)
def _attention(site: Site) -> None:
    """The scale is a number, not a size: it stays that of the original width, where torch would take the new one."""
    query = site.operand(site.argument(0, "query"))
    if site.node.kwargs.get("scale") is None and site.removal.kept(query.dim(-1)) is not None:
        site.node.update_kwarg("scale", query.shape[-1] ** -0.5)


def padding(removal: Removal, input: Operand, output: Operand, pad: Sequence[int]) -> list[int]:
    """The new padding: what is left of the slots that it adds, and of those that it cuts off where it is negative."""
    new = list(pad)
    for k in range(len(pad) // 2):
        d = input.ndim - 1 - k
        before, after = pad[2 * k : 2 * k + 2]
        kept_in, kept_out = removal.kept(input.dim(d)), removal.kept(output.dim(d))
        if kept_in is None and kept_out is None:
            continue
        n = input.dim(d).size
        m = output.dim(d).size
        new[2 * k] = rank(kept_out, before) if before > 0 else -rank(kept_in, -before)
        tail = kept_out[m - after :].sum() if kept_out is not None and after > 0 else after
        cut = kept_in[n + after :].sum() if kept_in is not None and after < 0 else -after
        new[2 * k + 1] = int(tail) if after > 0 else -int(cut)
    return new


@resizes(aten.as_strided.default)
def _as_strided(site: Site) -> None:
    """Where size and strides are those of the tensor itself they follow it; the rule refuses everything else."""
    if "size" in site.observation.counts and site.removal.shape(site.input.vectors) != site.input.shape:
        site.put(1, "size", list(site.counted("size")))
        site.put(2, "stride", list(site.value(site.node.args[0]).stride()))


@resizes(torch.arange, torch.ops.aten.arange.default)
def _arange(site: Site) -> None:
    """The positions in a dimension that loses slots: as many as are left."""
    output = _one(site.output)
    if output is not None and len(site.node.args) == 1:
        site.put(0, "end", site.removal.count(output.dim(0)))


@resizes(F.one_hot, torch.ops.aten.one_hot.default)
def _one_hot(site: Site) -> None:
    output = _one(site.output)
    if output is not None:
        site.put(1, "num_classes", site.removal.count(output.dim(-1)))


@resizes("histc", torch.histc, torch.ops.aten.histc.default)
def _histc(site: Site) -> None:
    if "bins" in site.observation.counts:
        (count,) = site.counted("bins")
        site.put(1, "bins", count)
        site.put(3, "max", count - 1)
