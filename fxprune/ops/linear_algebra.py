"""Linear algebra: equations and decompositions of matrices, which are the last two dimensions of a tensor.

A matrix is one thing, so its dimensions stay. Channels can be the dimensions before it, where one matrix stands for
each slot, and the right sides of an equation.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, depends, uncounted
from fxprune.ops.dependence import Dependence, Seen, anything, nothing
from fxprune.ops.elementwise import broadcast
from fxprune.ops.registry import Call, Operand, rule

MATRIX = "a matrix of linear algebra runs over this dimension"
SINGULAR = "a matrix of zeros, as a removed slot would have, has no solution"

_SOLVERS = (
    *("aten::linalg_solve_triangular", "aten::triangular_solve", "aten::_linalg_solve_ex"),
    *("aten::cholesky_solve", "aten::linalg_lu_solve"),
)
_INVERTING = (
    *("aten::linalg_inv_ex", "aten::linalg_cholesky_ex", "aten::cholesky", "aten::cholesky_inverse"),
    *("aten::linalg_lu_factor_ex", "aten::_linalg_slogdet"),
)
_DECOMPOSING = (
    *("aten::linalg_qr", "aten::_linalg_svd", "aten::_linalg_eigh", "aten::linalg_eig", "aten::_linalg_det"),
    "aten::linalg_matrix_exp",
)


@rule("aten::linalg_solve_triangular", "aten::_linalg_solve_ex")
def solve(call: Call, *operands: Operand) -> list[Operand]:
    """sum_j a[h, i, j] * y[h, j, k] = b[h, i, k]; with left=False, sum_j y[h, k, j] * a[h, j, i] = b[h, k, i]"""
    matrix, right = operands
    return _solved(call, [matrix], right, regular=bool(call.arguments.get("unitriangular")))


@rule("aten::triangular_solve", "aten::cholesky_solve")
def solve_for_first(call: Call, *operands: Operand) -> list[Operand]:
    """sum_j a[h, i, j] * y[h, j, k] = b[h, i, k]"""
    right, matrix = operands
    return _solved(call, [matrix], right, regular=bool(call.arguments.get("unitriangular")))


@rule("aten::linalg_lu_solve")
def solve_factored(call: Call, *operands: Operand) -> list[Operand]:
    """sum_j a[h, i, j] * y[h, j, k] = b[h, i, k], where a = l u is given; with left=False as above"""
    factors, pivots, right = operands
    call.lock(pivots.dim(-1), MATRIX)
    return _solved(call, [factors, _one_more(call, pivots)], right)


def _one_more(call: Call, operand: Operand) -> Operand:
    """An operand with one more dimension, so that a vector for each matrix lines up with it."""
    return Operand((*operand.vectors, call.fixed(1)), (*operand.zero, True))


def _solved(call: Call, matrices: Sequence[Operand], right: Operand, *, regular: bool = False) -> list[Operand]:
    """The outputs of an equation: its solution, and what describes the matrices.

    right: its right sides; the solution has one for each. regular: True if a matrix of zeros has a solution too.
    """
    is_vector = right.ndim == matrices[0].ndim - 1 and len(call.shapes[0]) == right.ndim
    sides = _one_more(call, right) if is_vector else right
    shape = (*call.shapes[0], 1) if is_vector else call.shapes[0]
    equations, column = (-2, -1) if is_vector or call.arguments.get("left", True) else (-1, -2)
    call.lock(sides.dim(equations), MATRIX)
    for operand in matrices:
        _lock_matrix(call, operand, regular=regular)
    outer = [Operand(operand.vectors[:-2], operand.zero[:-2]) for operand in (*matrices, sides)]
    vectors = list(broadcast(call, outer, shape[:-2]))
    zero = [
        sides.ndim >= -d and sides.shape[d] == size and sides.zero[d]
        for d, size in enumerate(shape[:-2], start=-len(shape))
    ]
    pair, pair_zero = [call.fixed(shape[-2]), call.fixed(shape[-1])], [True, True]
    pair[column], pair_zero[column] = sides.dim(column), sides.zero[column]
    made = len(call.shapes[0])
    solution = call.operand([*vectors, *pair][:made], [*zero, *pair_zero][:made])
    return [solution, *(_described(call, matrices[0], number) for number in range(1, len(call.shapes)))]


def _lock_matrix(call: Call, operand: Operand, *, regular: bool) -> None:
    """Lock the two dimensions of a matrix, and those before it where a removed slot would be a matrix of zeros."""
    for vector in operand.vectors[-2:]:
        call.lock(vector, MATRIX)
    for vector, vanishes in zip(operand.vectors[:-2], operand.zero[:-2], strict=True):
        if vanishes and not regular:
            call.lock(vector, SINGULAR)


def _described(call: Call, matrix: Operand, number: int) -> Operand:
    """The operand of an output that describes each matrix. number: that of the output."""
    shape, outer = call.shapes[number], matrix.vectors[:-2]
    if shape[: len(outer)] != matrix.shape[:-2]:
        return call.constant(number)  # an output that was not asked for is empty
    return call.operand([*outer, *(call.fixed(size) for size in shape[len(outer) :])], False)


@rule(*_INVERTING)
def inverse(call: Call, *operands: Operand) -> list[Operand]:
    """y[h] = f(x[h]), of matrices x[h] that have an inverse"""
    _lock_matrix(call, operands[0], regular=False)
    return [_described(call, operands[0], number) for number in range(len(call.shapes))]


@rule(*_DECOMPOSING)
def decomposition(call: Call, *operands: Operand) -> list[Operand]:
    """y[h] = f(x[h]), of any matrices x[h]"""
    _lock_matrix(call, operands[0], regular=True)
    return [_described(call, operands[0], number) for number in range(len(call.shapes))]


@rule("aten::_linalg_check_errors")
def check(call: Call) -> None:
    """No result"""


depends("aten::_linalg_check_errors")(nothing)
absent("aten::_linalg_check_errors", multiply_adds="nothing is computed")


@uncounted(*_SOLVERS, *_INVERTING, *_DECOMPOSING)
def unknown_products() -> None:
    """Unknown: the number depends on the algorithm."""


@depends(*_SOLVERS, *_INVERTING, *_DECOMPOSING)
def linear_algebra_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does."""
    return anything(seen)


absent(
    *(*_SOLVERS, *_INVERTING, *_DECOMPOSING, "aten::_linalg_check_errors"),
    factors=NO_FACTOR,
    constants=SLOT_BY_SLOT,
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    modules="no module of torch is this operation",
    norms="it is no statistic that a layer keeps",
)
