"""Tensors made in forward. A constant fill is the same at any size, so its slots are free; ranges are not."""

from __future__ import annotations

from fxprune.ops.registry import Call, Operand, rule

FILLS = """
    empty full new_empty new_full new_ones ones rand randn scalar_tensor new_empty_strided empty_strided
""".split()
ZEROS = "zeros new_zeros".split()
LIKE = "empty_like full_like ones_like rand_like randn_like randint_like bernoulli_like".split()
RANGES = "linspace logspace eye randperm randint tril_indices triu_indices hann_window".split()


@rule(*(f"aten::{name}" for name in FILLS))
def fills(call: Call) -> Operand:
    """y[i] = value, for as many i as `size` says"""
    made = call.operand([call.fresh(s) for s in call.shapes[0]], False)
    call.count("size", *made.vectors)
    return made


@rule(*(f"aten::{name}" for name in ZEROS))
def zeros(call: Call) -> Operand:
    """y[i] = 0, for as many i as `size` says"""
    made = call.operand([call.fresh(s) for s in call.shapes[0]])
    call.count("size", *made.vectors)
    return made


@rule(*(f"aten::{name}" for name in LIKE))
def like(call: Call, self: Operand) -> Operand:
    """y[i] = value, for the i of x"""
    return call.operand(self.vectors, False)


@rule("aten::zeros_like")
def zeros_like(call: Call, self: Operand) -> Operand:
    """y[i] = 0, for the i of x"""
    return call.operand(self.vectors)


@rule("aten::arange")
def arange(call: Call) -> Operand:
    """y[i] = start + step * i; counted from 0 in ones, the numbers are the positions in the result itself."""
    arguments, (size,) = call.arguments, call.shapes[0]
    if arguments.get("start", 0) != 0 or arguments.get("step", 1) != 1 or arguments["end"] != size:
        return call.constant()
    vector = call.fresh(size)
    return Operand((vector,), (True,), labels=None if vector.fixed else vector)


@rule(*(f"aten::{name}" for name in RANGES))
def ranges(call: Call) -> list[Operand]:
    """y[i] depends on i: fixed"""
    return [call.constant(i) for i in range(len(call.shapes))]
