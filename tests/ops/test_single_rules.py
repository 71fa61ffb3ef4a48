"""Elementwise, statistic and normalization rules one by one, for inputs that are zero at removed slots or not.

In the rows of the op table an operation follows a layer, so that what enters it is zero at removed channels. Here a
rule is asked again for every combination of inputs that are zero there and inputs that are not. Two claims of a rule
are compared with the operation: that removing slots changes nothing else (it marks a dimension where that is not so),
and that the result is zero at removed slots. The oracle removes slots by slicing the inputs, and knows no rule.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fxprune.analysis.arguments import bound
from fxprune.capture.values import tensors_in
from fxprune.channels.terms import Terms
from fxprune.ops import Call, Operand, elementwise, normalization, reduction, registry
from fxprune.ops.aspects import CONSTANTS

from .cases import CASES
from .test_ops import atoms, operands, randomise

RULES = {
    name: rule
    for name, rule in registry.registered().items()
    if rule.__module__ in (elementwise.__name__, reduction.__name__, normalization.__name__)
    and rule is not elementwise.random
}
NOT_ASKED = {
    "aten::cudnn_batch_norm": "runs on other devices only",
    "aten::miopen_batch_norm": "runs on other devices only",
    "aten::_conj": "of complex numbers only",
    "aten::_to_dense": "of sparse tensors only",
    "aten::searchsorted": "refuses everything",
    "aten::bucketize": "refuses everything",
}
PER_OPERATION = 12
"""The number of different calls of an operation that are checked."""


# -- calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Made:
    """One call of an operation: its arguments by name, with numbers."""

    func: Any
    raw: Mapping[str, Any]

    def run(self, raw: Mapping[str, Any]) -> list[torch.Tensor]:
        """The results for some arguments, none of which changes."""
        given = copied(raw)
        positional = [given.pop(a.name) for a in self.func._schema.arguments if not a.kwarg_only]
        with torch.no_grad():
            return tensors_in(self.func(*positional, **given))

    def key(self) -> str:
        """Two calls with one key differ in numbers only."""
        kinds = {name: tree_map(_shape_or_value, value) for name, value in self.raw.items()}
        return f"{self.func} {kinds}"


def copied(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {n: tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, v) for n, v in raw.items()}


def _shape_or_value(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value


class Recorder(TorchDispatchMode):
    """Keeps the calls of operations that have one of some rules."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        super().__init__()
        self.names, self.rules = rules.keys(), set(rules.values())
        self.made: dict[str, dict[str, Made]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim" and registry.rule_for(func) in self.rules:
            name, raw = bound(func, args, kwargs or {})
            if name == "aten::copy_":  # it may write into memory that has no numbers yet, NaN among them
                raw = {**raw, "self": torch.zeros_like(raw["self"])}
            known = self.made.setdefault(name if name in self.names else name.removesuffix("_"), {})
            made = Made(func, copied(raw))
            if len(known) < PER_OPERATION:
                known.setdefault(made.key(), made)
        return func(*args, **(kwargs or {}))


def calls_in_rows(rules: Mapping[str, Any] = RULES) -> dict[str, dict[str, Made]]:
    """The calls that the rows of the op table make, by operation."""
    recorder = Recorder(rules)
    for case in CASES:
        torch.manual_seed(zlib.crc32(case.name.encode()))
        op, inputs = randomise(case.make()).train(case.train), operands(case)
        with torch.no_grad(), recorder:
            op(*inputs)
    return recorder.made


def calls_from_schema(name: str) -> Iterator[Made]:
    """Calls of an operation that no row reaches: tensors of one shape and plain numbers; integers where floats fail."""
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), short)
    torch.manual_seed(zlib.crc32(name.encode()))
    worked = False
    for make, overload in itertools.product(KINDS, packet.overloads()):
        func = getattr(packet, overload)
        tensors = [a for a in func._schema.arguments if "Tensor" in str(a.type)]
        if "out" in overload.lower() or not tensors or (worked and not make().is_floating_point()):
            continue
        raw = {a.name: _argument(name, a, make) for a in func._schema.arguments}
        made = Made(func, raw)
        try:
            made.run(raw)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            continue
        worked = True
        yield made


KINDS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.rand(3, 5, 4, dtype=torch.float64) * 1.8 - 0.9,
    lambda: torch.rand(3, 5, 4, dtype=torch.float64) + 1.1,
    lambda: torch.rand(3, 5, 4) < 0.5,
    lambda: torch.randint(1, 9, (3, 5, 4)),
)
NUMBERS: dict[str, Any] = {"Tensor": None, "number": 0.7, "int": 2, "List[int]": [4], "bool": False, "float": 0.5}


def _argument(name: str, argument: Any, make: Callable[[], torch.Tensor]) -> Any:
    if argument.name == "g":  # the norms of a weight
        return make()[:, :1, :1]
    kind = str(argument.type).removeprefix("Optional[").removesuffix("]") if argument.has_default_value() else ""
    kind = kind or str(argument.type)
    if "Tensor" in kind and "List" not in kind:
        if argument.name in ("weight", "bias", "running_mean", "running_var"):
            return make()[0, :, 0] if "batch" in name else None
        return make()
    if argument.name == "training":
        return True
    return argument.default_value if argument.has_default_value() else NUMBERS.get(kind)


@pytest.fixture(scope="module")
def calls() -> dict[str, list[Made]]:
    """Calls of every operation, by name."""
    rows = calls_in_rows()
    return {
        name: [*rows[name].values()] if name in rows else [*calls_from_schema(name)]
        for name in RULES.keys() - NOT_ASKED
    }


# -- the check --------------------------------------------------------------------------------------------------


def check(made: Made, zeros: Sequence[bool]) -> None:
    """Remove one slot after the other from what enters an operation, and compare with what its rule claims.

    zeros: for each tensor that enters whether it is zero at removed slots.
    """
    terms, call, given = asked(made, zeros)
    outputs = registry.apply(RULES[call.op if call.op in RULES else call.op.removesuffix("_")], call, given)
    marked = {int(atom) for _, vector in call.marks for atom in terms.free(vector)}
    every = {atom for operand in given for v in operand.vectors for slot in atoms(terms, v)[:3] for atom in slot}
    for atom in sorted(every):
        gone = {id(v): [atom in slot for slot in atoms(terms, v)] for o in (*given, *outputs) for v in o.vectors}
        if atom in marked or any(all(flags) for flags in gone.values()):
            continue
        compare(made, call, given, outputs, gone, zeros)


def asked(made: Made, zeros: Sequence[bool]) -> tuple[Terms, Call, list[Operand]]:
    """A call for the rule, in which every dimension of every tensor is free."""
    terms, given = Terms(), list[Operand]()

    def operand(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        vectors = tuple(terms.fresh(size) if size > 1 else terms.fixed(size) for size in value.shape)
        given.append(Operand(vectors, tuple(v.fixed or zeros[len(given)] for v in vectors)))
        return given[-1]

    arguments = {name: tree_map(operand, value) for name, value in made.raw.items()}
    shapes = [tuple(t.shape) for t in made.run(made.raw)]
    events = itertools.count(2)
    name = made.func._schema.name
    return terms, Call(name, terms, shapes, made.func, arguments, dict(made.raw), lambda why: next(events)), given


def compare(
    made: Made,
    call: Call,
    given: Sequence[Operand],
    outputs: Sequence[Operand],
    gone: Mapping[int, list[bool]],
    zeros: Sequence[bool],
) -> None:
    """The results of sliced inputs against the slices of the results, and what the results are at removed slots."""
    tensors = iter(zip(given, zeros, strict=True))

    def at_removed(value: Any) -> Any:
        """Zeros, or other numbers, at removed slots."""
        if not isinstance(value, torch.Tensor):
            return value
        operand, zero = next(tensors)
        value = value.clone()
        for dim, vector in enumerate(operand.vectors):
            part = value.movedim(dim, 0)
            for slot in (k for k, flag in enumerate(gone[id(vector)]) if flag):
                part[slot] = 0 if zero else part[slot].flip(0) if part[slot].ndim else part[slot]
        return value

    reference = {name: tree_map(at_removed, value) for name, value in made.raw.items()}
    whole = made.run(reference)
    remaining = iter(given)
    small = {
        n: tree_map(lambda v: sliced(v, next(remaining), gone) if isinstance(v, torch.Tensor) else v, v)
        for n, v in reference.items()
    }
    for argument, vectors in call.counts.items():
        sizes = [gone[id(v)].count(False) if id(v) in gone else v.size for v in vectors]
        small[argument] = sizes if isinstance(small[argument], (list, tuple)) else math.prod(sizes)
    for number, (full, part, operand) in enumerate(zip(whole, made.run(small), outputs, strict=True)):
        kept = sliced(full, operand, gone)
        where = f"output {number} of {made.key()}, inputs zero at removed slots: {list(zeros)}"
        assert part.shape == kept.shape, where
        assert torch.allclose(part, kept, rtol=1e-9, atol=1e-9, equal_nan=True), f"an unmarked statistic: {where}"
        for dim, vector in enumerate(operand.vectors):
            left = full.movedim(dim, 0)[torch.tensor(gone[id(vector)])]
            if operand.zero[dim]:
                assert not left.any(), f"not zero at removed slots: {where}"
            elif left.numel() and kept.isfinite().all():
                assert left.isfinite().all(), f"no number at removed slots: {where}"


def sliced(value: torch.Tensor, operand: Operand, gone: Mapping[int, list[bool]]) -> torch.Tensor:
    for dim, vector in enumerate(operand.vectors):
        value = value.index_select(dim, torch.tensor([k for k, flag in enumerate(gone[id(vector)]) if not flag]))
    return value


@pytest.mark.parametrize("name", sorted(RULES.keys() - NOT_ASKED))
def test_a_rule_marks_statistics_and_knows_where_zeros_are(calls: dict[str, list[Made]], name: str) -> None:
    assert calls[name], "neither a row nor the schema gives a call"
    for made in calls[name]:
        count = sum(isinstance(v, torch.Tensor) for value in made.raw.values() for v in _listed(value))
        for zeros in itertools.product([False, True], repeat=count):
            check(made, zeros)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def needs_zeros(made: Made) -> bool:
    """True if removing slots is exact only because they are zero, in some of the tensors that enter."""
    count = sum(isinstance(v, torch.Tensor) for value in made.raw.values() for v in _listed(value))

    def marks(zero: bool) -> int:
        _, call, given = asked(made, [zero] * count)
        function = registry.rule_for(made.func)
        assert function is not None
        registry.apply(function, call, given)
        return len(call.marks)

    return marks(False) > marks(True)


def summing() -> set[str]:
    """The operations of the op table that sum over channels."""
    made = calls_in_rows(registry.registered())
    return {name for name, found in made.items() if any(map(needs_zeros, found.values()))}


def test_an_operation_that_sums_over_channels_says_what_it_reads() -> None:
    found = summing()
    assert found & CONSTANTS.reasons.keys() == set()
    assert {"aten::mm", "aten::convolution", "aten::sum", "aten::cumsum", "aten::_cdist_forward"} <= found


# -- the check can fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aten::sum", "an unmarked statistic"),
        ("aten::linalg_vector_norm", "an unmarked statistic"),
        ("aten::mean", "an unmarked statistic"),
        ("aten::cumsum", "an unmarked statistic"),
        ("aten::_softmax", "an unmarked statistic"),
        ("aten::native_group_norm", "an unmarked statistic"),
        ("aten::reciprocal", "no number at removed slots"),
    ],
)
def test_a_forgotten_mark_is_seen(
    calls: dict[str, list[Made]], name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Call, "mark", lambda *args, **kwargs: None)
    with pytest.raises(AssertionError, match=message):
        test_a_rule_marks_statistics_and_knows_where_zeros_are(calls, name)


@pytest.mark.parametrize("name", ["aten::cos", "aten::add", "aten::where", "aten::eq"])
def test_a_wrong_zero_of_an_elementwise_rule_is_seen(
    calls: dict[str, list[Made]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elementwise, "vanishes", lambda call, zeros: True)
    monkeypatch.setitem(RULES, name, elementwise.elementwise)
    with pytest.raises(AssertionError, match="not zero at removed slots"):
        test_a_rule_marks_statistics_and_knows_where_zeros_are(calls, name)


def test_every_exception_has_a_rule() -> None:
    assert NOT_ASKED.keys() <= RULES.keys()
