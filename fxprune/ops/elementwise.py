"""Elementwise operations: y[..., i, ...] = f(a[..., i, ...], b[..., i, ...], ...) under broadcasting.

Dimensions of equal size are tied; one of size 1 takes the other's vector. No operation mixes two slots, so one rule
serves all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends, recounts
from fxprune.ops.dependence import Dependence, Seen, either
from fxprune.ops.factors import Asked, Way, carriers, change, fitted, is_one, possible, unchanged_factor
from fxprune.ops.module_use import Use
from fxprune.ops.registry import Call, Operand, rule

ELEMENTWISE = """
    abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or
    bitwise_xor ceil celu clamp clamp_max clamp_min clip complex conj_physical copysign cos cosh deg2rad digamma div
    elu erf erfc erfinv exp exp2 expm1 fill float_power floor floor_divide fmax fmin fmod frac ge gelu gt
    hardshrink hardsigmoid hardswish hardtanh heaviside hypot isfinite isinf isnan isneginf isposinf ldexp le
    leaky_relu lerp lgamma log log10 log1p log2 log_sigmoid_forward logaddexp logaddexp2 logical_and logical_not
    logical_or logical_xor logit lt masked_fill maximum minimum mish mul mvlgamma nan_to_num neg nextafter polar
    polygamma positive pow rad2deg reciprocal relu relu6 remainder round rrelu_with_noise rsqrt rsub selu sgn
    sigmoid sign signbit silu sin sinc sinh softplus softshrink special_entr special_erfcx special_i0e special_i1
    special_log_ndtr special_ndtr special_ndtri special_xlog1py special_zeta sqrt square sub tan tanh threshold
    trunc where xlogy zero
    _prelu_kernel
    elu_backward gelu_backward hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward
    leaky_relu_backward log_sigmoid_backward logit_backward mish_backward rrelu_with_noise_backward sigmoid_backward
    silu_backward softplus_backward softshrink_backward tanh_backward threshold_backward
""".split()

TANGENTS = ("prims::add", "prims::sub", "prims::mul", "prims::div")
"""The operations by which torch finds the sizes of tangents that are zero, in `torch.func.jvp`."""

COPIES = """
    alias clone contiguous detach lift lift_fresh lift_fresh_copy to _to_copy type_as _to_dense _conj _neg_view
""".split()

RANDOM = """
    bernoulli cauchy dropout exponential geometric log_normal native_dropout normal random uniform
""".split()


def broadcast(call: Call, operands: Sequence[Operand], shape: Sequence[int]) -> tuple[Vector, ...]:
    """The vectors of the broadcast of `operands` to `shape`, aligned from the last dimension; equal sizes are tied."""
    vectors = []
    for d, size in enumerate(shape, start=-len(shape)):
        vector = None
        if size > 1:
            for operand in operands:
                if operand.ndim >= -d and operand.vectors[d].size == size:
                    if vector is None:
                        vector = operand.vectors[d]
                    else:
                        call.same(vector, operand.vectors[d])
                        if vector.fixed:
                            vector = operand.vectors[d]
        vectors.append(call.fixed(size) if vector is None else vector)
    return tuple(vectors)


@rule(*(f"aten::{name}" for name in ELEMENTWISE), *TANGENTS)
def elementwise(call: Call, *operands: Operand) -> list[Operand]:
    """y[i] = f(a[i], b[i], ...), broadcast"""
    outputs = []
    for shape in call.shapes:
        if shape == (0,):  # some return an empty second output
            outputs.append(call.operand([call.fixed(0)]))
            continue
        vectors = broadcast(call, operands, shape)
        zero = []
        for d, vector in enumerate(vectors, start=-len(vectors)):
            zeros = [_carries_zero(o, d, vector.size) for o in operands] if not vector.fixed else []
            zero.append(vector.fixed or vanishes(call, zeros))
            if not vector.fixed and breaks(call, zeros):
                call.mark(vector, f"{call.op.removeprefix('aten::')} has no value where the channel is zero")
        outputs.append(call.operand(vectors, zero))
    return outputs


@depends(*(f"aten::{name}" for name in ELEMENTWISE if name != "mul"), "aten::eq", "aten::ne", *TANGENTS)
def elementwise_dependence(seen: Seen) -> Dependence:
    """Depends where an operand does."""
    return either(*map(seen.of, seen.tensors))


@carries(*(f"aten::{name}" for name in ELEMENTWISE), *TANGENTS)
def elementwise_factors(asked: Asked) -> list[Way]:
    """The smallest sets of operands that have to be multiplied so that the result is, found by trying."""
    ratio = change(asked)
    if ratio is None:
        return []
    wanted = asked.factor / ratio

    def way(names: Sequence[str]) -> Way:
        return {name: fitted(wanted, asked[name].shape) for name in names}

    return possible(*(partial(way, names) for names in carriers(asked)))


@depends("aten::mul")
def mul_dependence(seen: Seen) -> Dependence:
    """Depends where a factor does, unless the other one is always zero."""
    a, b = seen["self"], seen["other"]
    if not isinstance(b, torch.Tensor):
        return False if b == 0 else seen.of(a)
    return either(_times(seen.of(a), seen, b), _times(seen.of(b), seen, a))


def _times(dependence: Dependence, seen: Seen, factor: torch.Tensor) -> Dependence:
    """A dependence, without the elements at which a factor is always zero."""
    if dependence is False:
        return False
    live = seen.live(factor)
    return live if isinstance(dependence, bool) else dependence & live


@rule("aten::eq", "aten::ne", labels="own")
def equal(call: Call, self: Operand, other: Any) -> list[Operand]:
    """y[i] = a[i] == b[i]. Two tensors of positions in one dimension may be compared; both are renumbered with it."""
    operands = [o for o in (self, other) if isinstance(o, Operand)]
    labels = [o.labels for o in operands if o.labels is not None]
    made = elementwise(call, *operands)
    if len(labels) == 2 and labels[0].size == labels[1].size:
        call.same(*labels)
        if call.op == "aten::eq":  # no number is equal to a removed position
            gone = labels[0].representative
            zero = [z or v.representative is gone for z, v in zip(made[0].zero, made[0].vectors, strict=True)]
            return [Operand(made[0].vectors, tuple(zero))]
        return made
    if call.op == "aten::eq" and len(operands) == 2:  # two zeros are equal
        made = [call.operand(made[0].vectors, False)]
    beyond = isinstance(other, (int, float)) and labels and not 0 <= other < labels[0].size
    for vector in () if beyond else labels:
        call.lock(vector, "positions in this dimension are compared with other numbers")
    return made


@rule(*(f"aten::{name}" for name in COPIES), labels="keep")
def copies(call: Call, *operands: Operand) -> Operand:
    """y[i] = x[i]"""
    return operands[0]


@depends(*(f"aten::{name}" for name in COPIES))
def copies_dependence(seen: Seen) -> Dependence:
    """The dependence of the tensor that is copied."""
    return either(*map(seen.of, seen.tensors))


carries(*(f"aten::{name}" for name in COPIES))(unchanged_factor)


@rule(*(f"aten::{name}" for name in RANDOM))
def random(call: Call, *operands: Operand) -> list[Operand]:
    """y[i] = a random number, whose distribution may follow from the arguments at i"""
    return [call.operand(broadcast(call, operands, shape), False) for shape in call.shapes]


@depends(*(f"aten::{name}" for name in RANDOM if "dropout" not in name))
def random_dependence(seen: Seen) -> Dependence:
    """Everything depends: a random number is no constant."""
    return True


@depends("aten::dropout", "aten::native_dropout")
def dropout_dependence(seen: Seen) -> list[Dependence]:
    """Depends where the argument is not always zero: a zero stays zero."""
    return [seen.live(seen["input"]), True]


@carries("aten::dropout", "aten::native_dropout")
def dropout_factors(asked: Asked) -> list[Way]:
    """Each element is kept or zero; the mask is what it is."""
    return [{"input": asked.factor}] if all(map(is_one, asked.factors[1:])) else []


@rule("aten::copy")
def copy(call: Call, self: Operand, src: Operand) -> Operand:
    """self[i] = src[i], src broadcast"""
    vectors = broadcast(call, [self, src], call.shapes[0])
    zero = [_carries_zero(src, d, v.size) for d, v in enumerate(vectors, start=-len(vectors))]
    return call.operand(vectors, zero)


@depends("aten::copy")
def copy_dependence(seen: Seen) -> Dependence:
    """The dependence of the source."""
    return seen.of(seen["src"])


@carries("aten::copy")
def copy_factors(asked: Asked) -> list[Way]:
    """The source carries the factor."""
    return possible(lambda: {"src": fitted(asked.factor, asked["src"].shape)})


@recounts("aten::_prelu_kernel", modules=(nn.PReLU,))
def prelu_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The number of slopes."""
    return {"num_parameters": module.weight.shape[0]}


_EVERY = (*(f"aten::{name}" for name in (*ELEMENTWISE, "eq", "ne", *COPIES, *RANDOM, "copy")), *TANGENTS)
absent(*(name for name in _EVERY if name != "aten::_prelu_kernel"), modules="its module has no count")
absent("aten::eq", "aten::ne", *(f"aten::{name}" for name in RANDOM if "dropout" not in name), factors=NO_FACTOR)
absent(
    *_EVERY,
    multiply_adds="each element is computed on its own",
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    norms="it is no statistic",
    constants=SLOT_BY_SLOT,
)


def _carries_zero(operand: Operand, d: int, size: int) -> bool:
    """True if removed slots are zero in this operand; False if it is broadcast there.

    d: the dimension, counted from the end. size: its size in the result.
    """
    return operand.ndim >= -d and operand.vectors[d].size == size and operand.zero[d]


_NUMBERS = (1.37, 0.4, -0.73, -2.1, 2.9)
_ROUNDS = (*(_NUMBERS[k:] + _NUMBERS[:k] for k in range(len(_NUMBERS))), _NUMBERS[:1] * len(_NUMBERS))
"""The numbers that an operation is tried on, one tuple per trial: different numbers with all pairs of signs, then equal
ones."""
_PROBES: dict[tuple[Any, ...], tuple[float, ...]] = {}


def vanishes(call: Call, zero: Sequence[bool]) -> bool:
    """True if the operation gives 0 where some operands are 0, whatever the others are. zero: a flag per operand."""
    return all(value == 0 for value in _values(call, zero))


def breaks(call: Call, zero: Sequence[bool]) -> bool:
    """True if the operation has no finite result where some operands are 0, but has one elsewhere, as 1 / x.

    zero: a flag per operand.
    """
    if not any(zero) or any(math.isfinite(value) for value in _values(call, zero)):
        return False
    return any(math.isfinite(value) for value in _values(call, [False] * len(zero)))


def _values(call: Call, zero: Sequence[bool]) -> tuple[float, ...]:
    """The results of the operation for 0 in some operands, and for several numbers in the others.

    The operation itself is run on single numbers, once for each operation, flags and other arguments.
    """
    values: list[Any] = []
    tensors = iter(zero)
    for name, argument in call.arguments.items():
        if isinstance(argument, Operand):
            values.append((name, next(tensors), _kind(call.raw[name].dtype)))
        elif isinstance(argument, (list, tuple)) and any(isinstance(a, Operand) for a in argument):
            return (_UNKNOWN,)
        else:
            values.append((name, argument))
    key = (call.func, repr(values))
    if key not in _PROBES:
        _PROBES[key] = tuple(_probe(call, values, numbers) for numbers in _ROUNDS)
    return _PROBES[key]


_UNKNOWN = 1.0
"""The result of an operation that cannot be run on single numbers: neither zero nor infinite."""


def _kind(dtype: torch.dtype) -> str:
    """The kind of number to run an operation on: "b" bool, "f" float (also for complex), "i" integer."""
    return "b" if dtype == torch.bool else "f" if dtype.is_floating_point or dtype.is_complex else "i"


def _probe(call: Call, values: Sequence[tuple[Any, ...]], numbers: Sequence[float]) -> float:
    """The result of the operation on single numbers.

    values: (name, zero, kind) of each tensor and (name, value) of each other argument. numbers: for the other tensors.
    """
    following = itertools.cycle(numbers)

    def tensor(zero: bool, kind: str) -> torch.Tensor:
        other = next(following)
        number = 0.0 if zero else other
        if kind == "b":
            return torch.tensor(number > 0)
        return torch.tensor(int(2 * number)) if kind == "i" else torch.tensor(number, dtype=torch.float64)

    with unset_fake_temporarily(), torch.no_grad():
        arguments = {v[0]: tensor(v[1], v[2]) if len(v) == 3 else v[1] for v in values}
        for name in ("out", "dtype", "layout", "device", "pin_memory", "memory_format"):
            arguments.pop(name, None)
        positional = [arguments.pop(a.name) for a in call.func._schema.arguments if not a.kwarg_only]
        try:
            made = call.func(*positional, **arguments)
            first = made[0] if isinstance(made, (tuple, list)) else made
            return float(first.abs() if first.is_complex() else first)
        except (RuntimeError, TypeError, ValueError):
            return _UNKNOWN
