"""The elements that depend on the input, compared with those that move when it does, for every row of the op table."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound
from fxprune.capture.values import tensors_in
from fxprune.errors import RuleError
from fxprune.fold.dependence import Shadows, execute
from fxprune.ops.aspects import DEPENDENCE
from fxprune.ops.dependence import Seen
from tests.ops.cases import CASES, RANDOM, OpCase
from tests.ops.test_ops import operands, randomise


class Watched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shadows = Shadows()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        return execute(Seen(func, bound(func, args, kwargs)[1], self.shadows.of), args, kwargs, self.shadows)


def dependence_of(function, x, dependent, *others):
    """The results of a function, and where each of them is said to depend on the chosen elements of x."""
    mode = Watched()
    mode.shadows.set(x, dependent)
    for other in others:
        mode.shadows.set(other, True)
    with torch.no_grad(), mode:
        made = tensors_in(function(x, *others))
    return made, [torch.as_tensor(mode.shadows.of(t)).expand(t.shape) for t in made]


def moved(function, x, dependent, *others):
    """True where the results move when the chosen elements of x do, in any of several ways; NaN counts as moved."""
    with torch.no_grad():
        first = tensors_in(function(x.clone(), *others))
        result = [torch.zeros(t.shape, dtype=torch.bool) for t in first]
        for factor in (-1.3, 0.2, 7.0):
            other = torch.where(dependent, x * factor + factor, x) if x.is_floating_point() else x
            changed = [o * factor + factor if o.is_floating_point() else o for o in others]
            for flags, a, b in zip(result, first, tensors_in(function(other, *changed)), strict=True):
                if a.is_floating_point():
                    flags |= ((a - b).abs() > 1e-12 * (1 + a.abs())) | a.isnan()
                else:
                    flags |= a != b
    return result


def chosen(case: OpCase, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Some channels depend whole, some at a few places, some not at all."""
    coin = np.random.default_rng(zlib.crc32(case.name.encode()) + seed)
    share = torch.from_numpy(coin.choice([0.0, 0.0, 0.4, 1.0], x.shape[case.axis]))
    at = torch.from_numpy(coin.random(tuple(x.shape)))
    return (at.movedim(case.axis, -1) < share).movedim(-1, case.axis)


def is_random(case: OpCase) -> bool:
    return RANDOM in (case.mixes, case.ties) or any(word in case.name.lower() for word in ("drop", "rrelu", "random"))


def is_taken(op: Any, *given: Any) -> bool:
    """False for a matrix that zeros make singular, which an inverse does not take."""
    try:
        op(*(tensor.clone() for tensor in given))
    except torch.linalg.LinAlgError:
        return False
    return True


FIXED = [case for case in CASES if not case.indices and not is_random(case)]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in FIXED])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_element_that_does_not_depend_does_not_move(case: OpCase, seed: int) -> None:
    torch.manual_seed(zlib.crc32(case.name.encode()) + seed)
    op = randomise(case.make()).eval()
    x, *others = operands(case)
    if seed:  # constants that are zero, and values that a mask or a clamp would hide
        zeros = torch.where(torch.rand(x.shape) < 0.4, torch.zeros_like(x), 3 * x)
        x = zeros if is_taken(op, zeros, *others) else x
    dependent = chosen(case, x, seed)
    try:
        before = moved(op, x, dependent, *others)
    except RuntimeError as error:
        pytest.fail(f"the row does not run in evaluation mode: {error}")
    made, said = dependence_of(op, x.clone(), dependent, *others)
    assert [t.shape for t in made] == [t.shape for t in said] == [t.shape for t in before]
    for where, moves in zip(said, before, strict=True):
        assert not (moves & ~where).any()


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: torch.relu(x) * 2 + 1, (3, 5)),
        (lambda x: torch.cat([x, torch.ones(3, 2)], 1).flip(1)[:, 1:4].contiguous(), (3, 5)),
        (lambda x: x.transpose(0, 1).reshape(-1, 3).add_(1.0), (3, 4)),
        (lambda x: F.max_pool2d(F.pad(x, (1, 0, 0, 1)), 2), (2, 3, 4, 4)),
        (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), (2, 3, 4, 4)),
        (lambda x: x.mean((2, 3)) + x.amax((2, 3)), (2, 3, 4, 4)),
        (lambda x: F.conv2d(x, torch.eye(3)[:, :, None, None], groups=1), (2, 3, 4, 4)),
        (lambda x: F.linear(x, torch.diag(torch.tensor([1.0, 0.0, 2.0]))), (4, 3)),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), torch.tensor([1.0, 0.0, 2.0])), (2, 3, 4, 4)),
        (lambda x: F.glu(torch.cat([x, x.sigmoid()], 1), 1), (2, 4)),
        (lambda x: F.pixel_shuffle(x, 2), (1, 8, 2, 2)),
        (lambda x: F.interpolate(x, scale_factor=2), (1, 3, 2, 2)),
    ],
)
def test_channels_that_are_constant_stay_so(function: Any, shape: tuple[int, ...]) -> None:
    """No rule may be cautious here: whole channels are constant, and what moves is all that is said to depend."""
    x = torch.randn(shape)
    dependent = torch.zeros(shape, dtype=torch.bool)
    dependent.select(1, 0).fill_(True)
    _, (said,) = dependence_of(function, x.clone(), dependent)
    (moves,) = moved(function, x, dependent)
    assert not (moves & ~said).any()
    assert torch.equal(per_channel(said), per_channel(moves))
    assert not said.all()


def per_channel(flags: torch.Tensor) -> torch.Tensor:
    return flags.flatten(2).any(2) if flags.ndim > 2 else flags


def test_a_wrong_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in FIXED if case.name == "Linear")
    monkeypatch.setitem(DEPENDENCE.functions, "aten::addmm", [lambda seen: False])
    with pytest.raises(AssertionError):
        test_an_element_that_does_not_depend_does_not_move(case, 0)


@pytest.mark.parametrize("shape", [(2,), (4, 1, 3)])
def test_a_dependence_of_another_shape_is_an_error_that_names_the_operation(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setitem(DEPENDENCE.functions, "aten::relu", [lambda seen: torch.ones(shape, dtype=torch.bool)])
    x = torch.randn(4, 3)
    seen = Seen(torch.ops.aten.relu.default, {"self": x}, Shadows().of)
    with pytest.raises(RuleError, match="the dependence of aten::relu has the wrong shape") as caught:
        execute(seen, (x,), {}, Shadows())
    assert f"it is {shape}, the result has (4, 3)" in str(caught.value)


def test_views_and_tensors_written_in_place_share_their_dependence() -> None:
    x = torch.randn(4, 6)
    mode = Watched()
    with mode:
        base = torch.zeros(4, 6)
        view = base[1:, ::2]
        mode.shadows.set(x, True)
        view[:, 0] = x[0, 0]
        base[0].mul_(x[1])
        again = base.t()
    said = torch.as_tensor(mode.shadows.of(again)).expand(6, 4)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:, 0] = True
    assert torch.equal(said.t()[1:], expected[1:])
    mode.shadows.set(base, False)
    assert not torch.as_tensor(mode.shadows.of(view)).any()


def test_an_empty_part_of_a_dependent_tensor_can_be_concatenated() -> None:
    x, dependent = torch.randn(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    dependent[:, 1] = True
    _, (said,) = dependence_of(lambda t: torch.cat([t[:, :0], t[:, 1:], t[:, 3:]], 1), x, dependent)
    assert said[:, 0].all()
    assert not said[:, 1].any()


def test_a_sum_of_constants_follows_the_size_and_a_mean_does_not() -> None:
    x, none = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    for function, depends in ((lambda t: t.sum((2, 3)), True), (lambda t: t.mean((2, 3)), False)):
        _, (said,) = dependence_of(function, x.clone(), none)
        assert said.any() == depends
    _, (said,) = dependence_of(lambda t: F.avg_pool2d(t, 3, 1, 1), x.clone(), none)
    assert said.all(), "zeros of the padding are averaged"
    _, (said,) = dependence_of(lambda t: F.avg_pool2d(t, 3, 1, 1, count_include_pad=False), x.clone(), none)
    assert not said.any()
