"""Pooling, resampling and padding in space: the last dimensions are space, and each channel is treated on its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends
from fxprune.ops.dependence import Dependence, Seen, either, over
from fxprune.ops.factors import Asked, Way, is_one, possible, reduced
from fxprune.ops.registry import Call, Operand, rule

SPATIAL = {
    1: """adaptive_avg_pool1d adaptive_max_pool1d avg_pool1d max_pool1d max_pool1d_with_indices reflection_pad1d
        replication_pad1d upsample_linear1d upsample_nearest1d _upsample_nearest_exact1d""",
    2: """_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d
        max_pool2d_with_indices max_unpool2d reflection_pad2d replication_pad2d upsample_bicubic2d
        upsample_bilinear2d upsample_nearest2d _upsample_nearest_exact2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa _upsample_lanczos2d_aa mkldnn_max_pool2d""",
    3: """_adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d max_pool3d
        max_pool3d_with_indices max_unpool3d reflection_pad3d replication_pad3d upsample_nearest3d
        upsample_trilinear3d _upsample_nearest_exact3d""",
}


def _register(space: int) -> None:
    """Register the rule of the operations with this number of dimensions in space."""

    @rule(*(f"aten::{name}" for name in SPATIAL[space].split()))
    def spatial(call: Call, *operands: Operand) -> list[Operand]:
        """y[.., c, s'] = f over a window of x[.., c, s]"""
        x = operands[0]
        for vector in x.vectors[-space:]:
            call.lock(vector, "spatial dimension of pooling, resampling or padding")
        for other in operands[1:]:
            for a, b in zip(x.vectors[:-space], other.vectors[:-space], strict=True):
                call.same(a, b)
        kept = x.ndim - space
        return [
            call.operand(
                [*x.vectors[:-space], *(call.fixed(s) for s in shape[kept:])], [*x.zero[:-space], *(True,) * space]
            )
            for shape in call.shapes
        ]


for _space in SPATIAL:
    _register(_space)


_AVERAGES = ("aten::avg_pool1d", "aten::avg_pool2d", "aten::avg_pool3d")


@depends(*(f"aten::{name}" for names in SPATIAL.values() for name in names.split() if "unpool" not in name))
def spatial_dependence(seen: Seen) -> list[Dependence]:
    """A channel depends if any position does; with averages that count padded zeros, also if it is not zero."""
    name = seen.func._schema.name
    x = seen.tensors[0]
    space = next(k for k, names in SPATIAL.items() if name.removeprefix("aten::") in names.split())
    averaged = name in _AVERAGES and any(_listed(seen["padding"])) and seen.raw.get("count_include_pad", True)
    dependence: Dependence = seen.live(x) if averaged else seen.of(x)
    return [over(dependence, x, range(-space, 0)), *(True for _ in seen.func._schema.returns[1:])]


_POOLS = tuple(f"aten::{name}" for names in SPATIAL.values() for name in names.split() if "unpool" not in name)


@carries(*_POOLS)
def spatial_factors(asked: Asked) -> list[Way]:
    """A channel carries the factor of all its positions: maxima, averages and copies are multiplied with it."""
    name = asked.func._schema.name.removeprefix("aten::")
    space = next(k for k, names in SPATIAL.items() if name in names.split())
    read = next(n for n in ("self", "input") if n in asked.raw)
    if not all(map(is_one, asked.factors[1:])):
        return []
    return possible(lambda: {read: reduced(asked.factor, range(-space, 0))})


def _listed(value: Any) -> Iterable[int]:
    return value if isinstance(value, (list, tuple)) else (value,)


@rule("aten::fractional_max_pool2d", "aten::fractional_max_pool3d")
def fractional_max_pool(call: Call, self: Operand, random_samples: Operand) -> list[Operand]:
    """y[n, c, s'] = max over a window of x[n, c, s] that random_samples[n, c, :] chooses"""
    space = random_samples.shape[-1]
    kept = self.ndim - space
    for vector in self.vectors[kept:]:
        call.lock(vector, "spatial dimension of pooling, resampling or padding")
    for a, b in zip(reversed(self.vectors[:kept]), reversed(random_samples.vectors[:-1]), strict=False):
        call.same(a, b)
    return [
        call.operand(
            [*self.vectors[:kept], *(call.fixed(s) for s in shape[kept:])], [*self.zero[:kept], *(True,) * space]
        )
        for shape in call.shapes
    ]


@rule("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler")
def grid_sampler(call: Call, *operands: Operand) -> Operand:
    """y[n, c, s'] = x[n, c, s] interpolated at s = grid[n, s', :]"""
    input, grid = operands
    for vector in (*input.vectors[2:], grid.vectors[-1]):
        call.lock(vector, "spatial dimension of pooling, resampling or padding")
    batch, channels = input.vectors[:2]
    call.same(batch, grid.dim(0))
    return call.operand(
        [batch, channels, *grid.vectors[1:-1]], [input.zero[0], input.zero[1], *(False for _ in grid.vectors[1:-1])]
    )


@depends(
    *("aten::max_unpool2d", "aten::max_unpool3d", "aten::fractional_max_pool2d", "aten::fractional_max_pool3d"),
    *("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler"),
)
def sampled_dependence(seen: Seen) -> list[Dependence]:
    """A channel depends unless it is all zero: other constants change with the places that are sampled."""
    x = seen.tensors[0]
    made = over(seen.live(x), x, range(2, x.ndim) if "grid" in seen.func._schema.name else _space_of(seen))
    return [made, *(True for _ in seen.func._schema.returns[1:])]


def _space_of(seen: Seen) -> range:
    """The dimensions in space, from the name of the operation."""
    return range(-3 if "3d" in seen.func._schema.name else -2, 0)


@rule("aten::glu")
def glu(call: Call, self: Operand, dim: int) -> Operand:
    """y[c] = x[c] * sigmoid(x[n + c]): slots c and n + c are removed together."""
    vector = self.dim(dim)
    halves, channels = call.split(vector, (2, vector.size // 2))
    call.lock(halves, "glu needs both halves")
    d = dim % self.ndim
    return call.operand([channels if i == d else v for i, v in enumerate(self.vectors)], self.zero)


@depends("aten::glu")
def glu_dependence(seen: Seen) -> Dependence:
    """Depends where x[c] does, or where x[n + c] does and x[c] is not zero."""
    x, dim = seen["self"], seen["dim"]
    dependence = seen.of(x)
    if isinstance(dependence, bool):
        return dependence
    a, b = dependence.expand(x.shape).chunk(2, dim)
    return either(a, b & seen.live(x.chunk(2, dim)[0]))


absent(
    *("aten::max_unpool2d", "aten::max_unpool3d", "aten::fractional_max_pool2d", "aten::fractional_max_pool3d"),
    *("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler", "aten::glu"),
    factors=NO_FACTOR,
)
absent(
    *(f"aten::{name}" for names in SPATIAL.values() for name in names.split()),
    *("aten::fractional_max_pool2d", "aten::fractional_max_pool3d"),
    *("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler", "aten::glu"),
    multiply_adds="pooling, interpolation and gates are not counted",
    sizes="its arguments are sizes in space, which stay",
    positions="no argument is a position among channels",
    readers="its arguments are sizes in space, which stay",
    modules="the attributes of its module are sizes in space, which stay",
    norms="it is no statistic over channels",
    constants=SLOT_BY_SLOT,
)
