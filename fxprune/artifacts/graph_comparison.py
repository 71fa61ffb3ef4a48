"""The comparison of an exported graph with its model, on the example inputs and on batches of other sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.artifacts.graph_format import Runner
from fxprune.artifacts.program import Portable, resized
from fxprune.capture.inputs import Inputs
from fxprune.capture.values import tensors_in
from fxprune.errors import InputError, VerificationError, text_of


def worst_error(
    portable: Portable, runner: Runner, inputs: Inputs, varying: frozenset[int], tolerance: float | None, path: str
) -> float:
    """Returns the largest relative error of a file over several batch sizes: n as in the example, n + 1, and 1.

    Args:
        portable: the model.
        runner: a function that runs the bytes of the file.
        inputs: the example inputs.
        varying: the ids of the input tensors whose dimension 0 is the batch; if empty, only the example is run.
        tolerance: the largest error that is accepted; None for the square root of the coarsest dtype's eps.
        path: the path of the file, for messages.

    Raises `VerificationError` above the tolerance.
    """
    errors: dict[int | None, float] = {}
    for size, case in _batches(inputs, varying):
        errors[size] = _error_on(portable, runner, case, tolerance, path, size, errors)
    return max(errors.values())


def _batches(inputs: Inputs, varying: frozenset[int]) -> Iterator[tuple[int | None, Inputs]]:
    """Yields the example inputs, and its samples in a batch of one more and in a batch of one, each after its size."""
    if not varying:
        yield None, inputs
        return
    size = next(t.shape[0] for t in pytree.tree_leaves(inputs) if id(t) in varying)
    yield size, inputs
    for other in dict.fromkeys((size + 1, 1)):
        if other != size:
            yield other, resized(inputs, varying, other)


def _error_on(
    portable: Portable,
    runner: Runner,
    inputs: Inputs,
    tolerance: float | None,
    path: str,
    size: int | None,
    smaller: Mapping[int | None, float],
) -> float:
    """Returns the relative error on these inputs. Raises `VerificationError` if it is too large.

    size: that of the batch, None if it is fixed. smaller: size of a batch -> its error, which is accepted.
    """
    sizes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
    try:
        theirs = portable.run(inputs)
    except Exception as failure:
        raise InputError(
            "the model does not run on these inputs",
            at=f"inputs {sizes}",
            why=text_of(failure),
            do="pass inputs that the model takes",
        ) from failure
    try:
        ours = runner(inputs)
    except Exception as failure:
        raise VerificationError(
            f'what "{path}" would hold does not run',
            at=f"inputs {sizes}",
            why=text_of(failure),
            do="no file was written",
        ) from failure
    error = difference(ours, theirs)
    allowed = _default_tolerance(portable.model, inputs, theirs) if tolerance is None else tolerance
    if not error <= allowed:
        raise VerificationError(
            f'what "{path}" would hold computes other numbers than the model',
            at=f"inputs {sizes}",
            why=f"the relative error is {error:.1e}, above {allowed:.1e}"
            + _among(size, smaller)
            + _drawn(portable, inputs),
            do=_next_step(size, smaller),
        )
    return error


def _among(size: int | None, smaller: Mapping[int | None, float]) -> str:
    """The sizes of batches whose error is accepted, where there are some."""
    if not smaller:
        return ""
    return f", with a batch of {size}; it is {max(smaller.values()):.1e} with {' and '.join(map(str, smaller))}"


def _drawn(portable: Portable, inputs: Inputs) -> str:
    """A sentence about random numbers: whether the outputs of the model depend on the seed."""
    outputs = [portable.run(inputs, seed=seed) for seed in (0, 1)]
    draws = difference(*outputs) != 0
    return (
        "; the model draws random numbers, and the file draws others" if draws else "; nothing in the model is random"
    )


def _next_step(size: int | None, smaller: Mapping[int | None, float]) -> str:
    do = "no file was written; a larger `tolerance` accepts it"
    if size == 1 and smaller:
        return f"{do}; a variance over the batch is rounding alone there: see what the model computes over the batch"
    return do


def difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Returns the largest max |ours - theirs| / max |theirs| of an output.

    It is infinite if shapes, dtypes or the positions of NaN and infinities differ.

    >>> inf = float("inf")
    >>> difference([torch.tensor([1.0, -inf])], [torch.tensor([2.0, -inf])]), difference([], [torch.ones(1)])
    (0.5, inf)
    """
    if [(t.shape, t.dtype) for t in ours] != [(t.shape, t.dtype) for t in theirs]:
        return math.inf
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        wide = torch.complex128 if b.is_complex() else torch.float64
        a, b = a.detach().cpu().to(wide), b.detach().cpu().to(wide)
        same = (a == b) | (a.isnan() & b.isnan())
        if not same.all():
            apart, size = float((a - b)[~same].abs().max()), b[b.isfinite()].abs()
            scale = float(size.max()) if size.numel() else 0.0
            worst = max(worst, apart / (scale or 1.0) if math.isfinite(apart) else math.inf)
    return worst


def _default_tolerance(model: nn.Module, inputs: Inputs, outputs: Sequence[torch.Tensor]) -> float:
    """Returns sqrt(eps) of the coarsest floating dtype among parameters, buffers, inputs and outputs."""
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(inputs), *outputs]
    dtypes = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    return math.sqrt(max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0))
