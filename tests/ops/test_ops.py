"""Three checks on every row of the op table, and for each check a proof that it can fail.

1. transfer: perturb one input channel of the real operation, and see which output slots move;
2. shrink: remove channels from producer -> operation -> consumer, and compare with an oracle that knows no rule;
3. refusal: what must stay stays, and the report says which operation of which module and line holds it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fxprune
from fxprune.analysis.observer import Observer
from fxprune.capture.fake_tensors import Faker
from fxprune.capture.scopes import Scopes
from fxprune.channels.terms import Terms, Vector
from fxprune.ops import Operand, aspects, registry

from .cases import CASES, RANDOM, Op, OpCase

IN_CHANNELS, OUT_CHANNELS = 3, 13
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)))
BY_NAME = {case.name: case for case in CASES}
SHRINKING = [c for c in CASES if c.expect != "refused"]
REFUSED = [c for c in CASES if c.expect == "refused"]
COMPARED = [c for c in CASES if not c.mixes]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(cases: Sequence[OpCase]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


# -- the net around a row ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """producer -> operation -> consumer: the outer two are linear in the channel axis."""

    def __init__(self, case: OpCase) -> None:
        super().__init__()
        self.case = case
        self.op = case.make()
        if not case.alone:
            self.producer = linear_along(case.axis, len(case.shape), IN_CHANNELS, case.shape[case.axis])
        randomise(self)
        if case.out is not None:
            made = run(self.op, operands(case))
            self.consumer = linear_along(case.out, made.ndim, made.shape[case.out], OUT_CHANNELS)
            randomise(self.consumer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.case.alone else apply_along(self.case.axis, self.producer, x)
        h = self.op(h, x) if self.case.takes_input else self.op(h)
        return h if self.case.out is None else apply_along(self.case.out, self.consumer, h)


def linear_along(axis: int, ndim: int, size: int, out: int) -> nn.Module:
    convolution = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}.get(ndim) if axis == 1 else None
    return convolution(size, out, 1) if convolution else nn.Linear(size, out)


def apply_along(axis: int, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.movedim(axis, -1)).movedim(-1, axis) if isinstance(layer, nn.Linear) else layer(x)


def randomise(module: nn.Module) -> nn.Module:
    """Float64, weights of both signs, statistics and biases that are not their defaults."""
    module.double()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            last = name.rpartition(".")[2]
            if tensor.is_floating_point() and last not in ("_u", "_v"):  # the vectors of a power iteration fit a weight
                tensor.normal_(0.2, 0.8)
            if last == "running_var":
                tensor.abs_().add_(0.5)
    return module


def built(case: OpCase, seed: int = 0) -> tuple[Net, torch.Tensor]:
    """The net of a row and an input for it; both depend on the row's name and the seed alone."""
    torch.manual_seed(zlib.crc32(case.name.encode()) + seed)
    net = Net(case).train(case.train)
    return net, sample(case, case.shape if case.alone else source_shape(case))


def operands(case: OpCase) -> list[torch.Tensor]:
    """The tensors that enter the operation."""
    return [sample(case, case.shape), *([sample(case, source_shape(case))] if case.takes_input else [])]


def source_shape(case: OpCase) -> tuple[int, ...]:
    shape = list(case.shape)
    shape[case.axis] = IN_CHANNELS
    return tuple(shape)


def sample(case: OpCase, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, case.indices, shape) if case.indices else torch.randn(shape, dtype=torch.float64)


def run(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result of a module; neither it nor its inputs change, also where it works in place."""
    with torch.no_grad():
        return copy.deepcopy(module)(*(x.clone() for x in inputs))


def place(where: str) -> tuple[str, int]:
    """ "op.weight[1]" -> ("op.weight", 1)"""
    name, _, dim = where.removesuffix("]").partition("[")
    return name, int(dim)


# -- 1. transfer: the rule against the operation ----------------------------------------------------------------


def moved_slots(case: OpCase, op: nn.Module, inputs: Sequence[torch.Tensor]) -> np.ndarray:
    """[i, j]: whether slot j of the result's channel axis moves when slot i of the input's is perturbed."""

    def rows_of(y: torch.Tensor) -> torch.Tensor:
        return y.double().movedim(case.out, 0).flatten(1)

    base = rows_of(run(op, inputs))
    moved = np.zeros((case.shape[case.axis], len(base)), dtype=bool)
    for i in range(len(moved)):
        for step in (-1.7, 0.4, 2.3):
            h = inputs[0].clone()
            slot = h.select(case.axis, i)
            slot += step * torch.rand_like(slot)
            now = rows_of(run(op, [h, *inputs[1:]]))
            moved[i] |= ((now != base) & ~(now.isnan() & base.isnan())).any(1).numpy()
    return moved


def claimed(case: OpCase, op: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[Any, Any, set[int]]:
    """The claims of the rules: the free atoms of every slot of both channel axes, and the marked atoms."""
    terms, faker = Terms(), Faker()
    observer = Observer(terms, Scopes(op))
    for tensor in [*op.parameters(), *op.buffers()]:
        vectors = tuple(terms.fresh(size) for size in tensor.shape)
        value = None if tensor.is_floating_point() else tensor
        observer.bind(faker.tensor(tensor), Operand(vectors, (True,) * len(vectors), value))
    fakes = [faker.tensor(x) for x in inputs]
    vectors = [terms.fixed(size) for size in case.shape]
    vectors[case.axis] = channels = terms.fresh(case.shape[case.axis])
    observer.bind(fakes[0], Operand(tuple(vectors), (True,) * len(vectors)))
    with torch.no_grad(), faker.mode, observer:
        result = observer.operand(faker.module(op)(*fakes))
    after = [] if case.out is None else atoms(terms, result.dim(case.out))
    marked = {int(atom) for _, vector in observer.marks for atom in terms.free(vector)}
    return atoms(terms, channels), after, marked


def atoms(terms: Terms, vector: Vector) -> list[set[int]]:
    """Per slot, the free atoms that remove it."""
    columns = [np.where(terms.event(c) == 0, c, 0) for c in terms.resolve(vector).columns]
    return [{int(c[i]) for c in columns} - {0} for i in range(vector.size)]


def check_transfer(case: OpCase) -> None:
    """The rule ties an output slot to every input slot that moves it, and (unless `ties` says why) to no other.

    Slots are tied when the atoms of one are among those of the other; a slot that a statistic moves must be marked.
    """
    torch.manual_seed(zlib.crc32(case.name.encode()))
    op = randomise(case.make()).train(case.train)
    inputs = operands(case)
    before, after, marked = claimed(case, op, inputs)
    assert any(before) == (case.expect != "refused"), f"the operation leaves {sum(map(bool, before))} channels free"
    if case.expect == "refused":
        return
    moved = moved_slots(case, op, inputs)
    wrong, cautious = [], []
    for i, j in np.ndindex(*moved.shape):
        tied = bool(before[i]) and bool(after[j]) and (before[i] <= after[j] or after[j] <= before[i])
        if moved[i, j] and before[i] and not tied and not (case.expect == "inexact" and before[i] & marked):
            wrong.append((i, j))
        if tied and not moved[i, j]:
            cautious.append((i, j))
    assert not wrong, f"input slot i moves output slot j, and the rule does not tie them: (i, j) = {wrong[:8]}"
    assert bool(cautious) == bool(case.ties), f"tied though i does not move j: {cautious[:8]}; expected: {case.ties!r}"


@rows(COMPARED)
def test_a_rule_ties_the_slots_that_move_together(case: OpCase) -> None:
    check_transfer(case)


# -- 2. shrink: the small model against an oracle that knows no rule ---------------------------------------------


def check_shrink(case: OpCase, seed: int) -> None:
    """The channels are removed everywhere they should be, and the small model equals the reference."""
    net, x = built(case, seed)
    untouched = copy.deepcopy(net.state_dict())
    exact = case.expect == "exact"
    small = fxprune.transform(
        net, x, ratio=0.4, importance="random", seed=seed, exact=exact, strict=True, verify=seed == 0, prefer="graph"
    )
    assert all(torch.equal(t, untouched[name]) for name, t in net.state_dict().items())
    removed = fxprune.record(small).removed
    assert removed
    shapes = {name: t.shape for name, t in [*small.named_parameters(), *small.named_buffers()]}
    for name, dim in map(place, case.loses):
        gone = removed.get(name, {}).get(dim, ())
        assert gone, f"{name}[{dim}] lost nothing; what went: { {n: list(d) for n, d in removed.items()} }"
        assert shapes[name][dim] == untouched[name].shape[dim] - len(gone)
    assert fxprune.record(small).exact is exact
    assert run(small, [x]).shape == run(net, [x]).shape
    if exact and case.mixes != RANDOM:
        named = {name: dims for name, dims in removed.items() if name in untouched}  # constants have no name in the net
        assert difference(run(small, [x]), run(fxprune.masked(net, named), [x])) < 1e-9
    else:
        assert fxprune.verify(net, small, x) < 1e-9


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    scale = reference.abs().max()
    assert scale > 0, "the reference is zero everywhere: it proves nothing"
    return float((ours - reference).abs().max() / scale)


@pytest.mark.parametrize("seed", SEEDS)
@rows(SHRINKING)
def test_a_smaller_model_computes_the_same(case: OpCase, seed: int) -> None:
    check_shrink(case, seed)


COUNTING = tuple(aspects.MODULES.keys)
WORDS = {word: word for word in ("same", "circular", "reflect", "replicate")}  # repr of a layer prints no quotes


def from_its_repr(layer: nn.Module) -> nn.Module:
    made: nn.Module = eval(repr(layer), {**vars(nn), **WORDS})
    return made


def says_all(layer: nn.Module) -> bool:
    """True if the layer's repr says which parameters it has; that of a layer norm does not in torch 2.11."""
    return from_its_repr(layer).state_dict().keys() == layer.state_dict().keys()


@rows(
    [
        c
        for c in SHRINKING
        if isinstance(c.make(), COUNTING) and not parametrize.is_parametrized(c.make()) and says_all(c.make())
    ]
)
def test_a_layer_built_from_its_printed_numbers_computes_the_same(case: OpCase) -> None:
    """A layer built from the numbers that the small one prints has its shapes and computes the same."""
    net, x = built(case)
    small = fxprune.transform(net, x, ratio=0.4, importance="random", seed=0, verify=False)
    op = small.get_submodule("op")
    clone = from_its_repr(op).double().train(case.train)
    clone.load_state_dict(op.state_dict(), strict=True)
    seen: list[torch.Tensor] = []
    op.register_forward_hook(lambda module, given, made: seen.extend((*given, made)))
    run(small, [x])
    assert torch.equal(run(clone, seen[:1]), seen[1])


def test_squeeze_keeps_a_channel_axis_that_becomes_one() -> None:
    for squeeze in (lambda h: h.squeeze(), lambda h: h.squeeze(1), lambda h: torch.squeeze(h, (0, 1, 2))):
        net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), Op(squeeze), Op(lambda h: h.view(2, -1)))
        net.append(nn.Linear(5, 7)).double()
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        small = fxprune.transform(net, x, masks={"0": torch.arange(5) == 3}, prefer="graph")
        assert small.get_submodule("0").out_channels == 1
        reference = fxprune.masked(net, fxprune.record(small).removed)
        assert difference(run(small, [x]), run(reference, [x])) < 1e-9


# -- 3. refusals: what stays, and what is said about it ----------------------------------------------------------


def check_refusal(case: OpCase) -> None:
    """Every channel that enters stays, and the report names operation, module, source line and reason."""
    net, x = built(case)
    analysis = fxprune.analyze(net, x)
    for name, dim in map(place, case.loses):
        holders = [locked for locked in analysis.locked if (name, dim) in locked.slots]
        assert sum(locked.slots[name, dim] for locked in holders) == net.state_dict()[name].shape[dim]
        texts = [str(locked) for locked in holders]
        for part in (*map(re.escape, case.says), r" in op \(.*(cases/\w+|test_ops)\.py:\d+\): "):
            assert any(re.search(part, text) for text in texts), f"{part} is not in {texts}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(net, x, ratio=0.4, importance="random", seed=0, prefer="graph")
    removed = fxprune.record(small).removed
    assert not any(dim in removed.get(name, {}) for name, dim in map(place, case.loses))
    ours, reference = run(small, [x]), run(fxprune.masked(net, removed), [x])
    assert difference(ours, reference) < 1e-9


@rows(REFUSED)
def test_refused_channels_stay_and_the_report_says_why(case: OpCase) -> None:
    check_refusal(case)


@rows(REFUSED)
def test_strict_raises_for_operations_without_a_rule(case: OpCase) -> None:
    """An operation without a rule raises, and each sentence of the message is there; one with a rule does not."""
    net, x = built(case)
    if not case.unruled:
        fxprune.analyze(net, x, strict=True)
        return
    with pytest.raises(fxprune.RuleError) as caught:
        fxprune.analyze(net, x, strict=True)
    text = str(caught.value)
    for part in (
        f"no channel rule for {case.says[0]}\n",
        r"  at   op \(.*(cases/\w+|test_ops)\.py:\d+\), node %\w+\n",
        r"  why  channels enter it on a dimension of size (11|17)\n",
        r"  do   add a rule \(docs/adding_an_op\.md\), or drop strict=True to keep these channels$",
    ):
        assert re.search(part, text), text


# -- the checks can fail ----------------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the rule of an operation by "nothing moves, nothing mixes"."""

    def identity(call: registry.Call, *given: Operand) -> list[Operand]:
        return [given[0]] * len(call.shapes)

    def replace(name: str) -> None:
        monkeypatch.setitem(registry._RULES, name, identity)
        monkeypatch.setitem(registry._PARAMETERS, identity, None)

    return replace


def test_transfer_can_fail(pretend: Callable[[str], None]) -> None:
    check_transfer(BY_NAME["flip"])
    pretend("aten::flip")
    with pytest.raises(AssertionError, match="does not tie them"):
        check_transfer(BY_NAME["flip"])


def test_transfer_sees_an_unmarked_statistic(pretend: Callable[[str], None]) -> None:
    check_transfer(BY_NAME["softmax over the channels"])
    pretend("aten::_softmax")
    with pytest.raises(AssertionError, match="does not tie them"):
        check_transfer(BY_NAME["softmax over the channels"])


def test_transfer_sees_a_needless_tie() -> None:
    cautious = BY_NAME["slice, every second, from one"]
    with pytest.raises(AssertionError, match="tied though i does not move j"):
        check_transfer(dataclasses.replace(cautious, ties=""))


def test_shrink_can_fail(pretend: Callable[[str], None]) -> None:
    check_shrink(BY_NAME["flip"], 1)
    pretend("aten::flip")
    with pytest.raises(AssertionError, match=r"assert .* < 1e-09"):
        check_shrink(BY_NAME["flip"], 1)


def test_refusal_can_fail(pretend: Callable[[str], None]) -> None:
    check_refusal(BY_NAME["cummax"])
    pretend("aten::cummax")
    with pytest.raises(AssertionError):
        check_refusal(BY_NAME["cummax"])


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)
