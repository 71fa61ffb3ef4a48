"""Every operation has each aspect, or says why not; what it says is tried on the rows of the op table."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

import fxprune
from fxprune.analysis.observer import Observer
from fxprune.capture.fake_tensors import Faker
from fxprune.capture.scopes import Scopes
from fxprune.channels.terms import Terms
from fxprune.errors import RuleError
from fxprune.fold.dependence import is_view
from fxprune.ops import FAMILIES, Call, Operand, aspects, registered
from fxprune.ops.aspects import ASPECTS, Aspect, absent
from fxprune.ops.attention import KERNELS
from fxprune.ops.elementwise import ELEMENTWISE, TANGENTS
from tests.ops.cases import CASES
from tests.ops.test_ops import operands, randomise

RULES = {name: rule for name, rule in registered().items() if rule.__module__.startswith("fxprune.ops.")}
WRITTEN = tuple(ASPECTS)
ABSENT = {
    "multiply_adds": 255,
    "sizes": 252,
    "positions": 295,
    "readers": 258,
    "modules": 277,
    "norms": 298,
    "dependence": 28,
    "constants": 241,
    "factors": 165,
}
"""The number of operations that lack an aspect, without the list of elementwise ones. A number may only fall,
unless an operation is new here."""

SIZED_WITHOUT_READER = {
    *("aten::constant_pad_nd", "aten::cudnn_convolution", "aten::squeeze"),
    *("aten::_cudnn_rnn", "aten::mkldnn_rnn_layer"),
    *(f"aten::{kernel}" for kernel in KERNELS),
}
"""Operations with sizes in a graph that are not read in hidden code. The set may only shrink."""


@pytest.mark.parametrize("name", WRITTEN)
def test_every_operation_has_the_aspect_or_says_why_not(name: str) -> None:
    table = ASPECTS[name]
    lacking = RULES.keys() - table.functions.keys()
    assert [operation for operation in lacking if not table.reasons.get(operation)] == []
    assert set(table.functions).isdisjoint(table.reasons)
    own = {operation for operation in table.reasons if operation.startswith("aten::")}
    assert own <= RULES.keys(), "only operations with a rule say what they lack"


@pytest.mark.parametrize("name", WRITTEN)
def test_absences_may_only_fall(name: str) -> None:
    listed = {f"aten::{operation}" for operation in ELEMENTWISE} | set(TANGENTS)
    lacking = RULES.keys() & ASPECTS[name].reasons.keys()
    assert len(lacking - listed) == ABSENT[name], "write the number if it is smaller"


def test_everything_about_an_operation_stands_in_the_file_of_its_family() -> None:
    families = {family.__name__ for family in FAMILIES}  # functions that families share stand elsewhere
    files: dict[str, set[str]] = {name: {rule.__module__} for name, rule in RULES.items()}
    for table in ASPECTS.values():
        for name in files.keys() & table.functions.keys():
            files[name] |= {function.__module__ for function in table.functions[name]} & families
    assert {name: found for name, found in files.items() if len(found) > 1} == {}


NOT_EVERYWHERE = {"aten::cholesky", "aten::_upsample_lanczos2d_aa"}
"""Operations that torch 2.14 has no longer, and one that torch 2.11 has not yet."""


def test_operations_that_aspects_name_exist() -> None:
    for table in ASPECTS.values():
        names = [name for name in table.functions if name.startswith("aten::") and name not in NOT_EVERYWHERE]
        assert [name for name in names if not hasattr(torch.ops.aten, name.removeprefix("aten::"))] == []


# -- absences tried on the rows ---------------------------------------------------------------------------------


class _Watching(Observer):
    """An observer that keeps every call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[Call] = []

    def _note(self, call: Call, outputs: list[torch.Tensor], results: list[Operand]) -> None:
        super()._note(call, outputs, results)
        self.calls.append(call)


@functools.cache
def calls() -> dict[str, list[Call]]:
    """Every call of every operation in the rows, all dimensions that enter a row being free."""
    found = defaultdict(list)
    for case in CASES:
        torch.manual_seed(0)
        op = randomise(case.make()).train(case.train)
        terms, faker = Terms(), Faker()
        observer = _Watching(terms, Scopes(op))
        fakes = [faker.tensor(x) for x in operands(case)]
        for tensor in [*op.parameters(), *op.buffers()]:
            vectors = tuple(terms.fresh(size) for size in tensor.shape)
            value = None if tensor.is_floating_point() else tensor
            observer.bind(faker.tensor(tensor), Operand(vectors, (True,) * len(vectors), value))
        observer.bind(fakes[0], Operand(tuple(map(terms.fresh, case.shape)), (True,) * len(case.shape)))
        try:
            with torch.no_grad(), faker.mode, observer:
                faker.module(op)(*fakes)
        except Exception:  # rows that decide by numbers do not run to their end on fake tensors
            assert case.expect == "refused" or case.mixes, case.name
        for call in observer.calls:
            found[call.op.removesuffix("_")].append(call)
    return found


def counts(call: Call) -> bool:
    """True if an integer argument counts a dimension that is not fixed."""
    return any(not vector.fixed for vectors in call.counts.values() for vector in vectors)


def positions(call: Call) -> bool:
    """True if an argument is a position in a dimension that is not fixed. The end of a border is one by its size."""
    return call.op != "aten::constant_pad_nd" and any(not vector.fixed for _, _, vector in call.positions)


def keeps_width(call: Call) -> bool:
    """True if a statistic depends on the width alone, so that it could still count the original one."""
    return bool(call.widths)


def contradictions(table: Aspect[Any], test: Callable[[Call], bool]) -> list[str]:
    """The operations that lack an aspect and whose calls need it."""
    return [name for name, made in calls().items() if name in table.reasons and any(map(test, made))]


PROBES: tuple[tuple[str, Callable[[Call], bool]], ...] = (
    ("sizes", counts),
    ("positions", positions),
    ("norms", keeps_width),
)


@pytest.mark.parametrize(("name", "test"), PROBES)
def test_no_row_of_the_table_needs_an_absent_aspect(name: str, test: Callable[[Call], bool]) -> None:
    assert contradictions(ASPECTS[name], test) == []


def test_integers_in_hidden_code_are_read_where_those_in_graphs_are() -> None:
    table = ASPECTS["readers"]
    assert contradictions(table, counts) == []
    sized = RULES.keys() & ASPECTS["sizes"].functions.keys()
    assert sized & table.reasons.keys() == SIZED_WITHOUT_READER


def test_only_views_lack_dependence() -> None:
    packets = [getattr(torch.ops.aten, name.removeprefix("aten::")) for name in ASPECTS["dependence"].reasons]
    assert [p for p in packets if not any(is_view(getattr(p, overload)) for overload in p.overloads())] == []


def test_torch_counts_nothing_where_multiply_adds_are_absent() -> None:
    counted = {f"aten::{packet.__name__}" for packet in flop_registry}
    assert counted.intersection(ASPECTS["multiply_adds"].reasons) == set()


def uncounted_modules() -> Iterator[nn.Module]:
    """The layers of torch in the rows whose attributes no function recounts."""
    known = tuple(aspects.MODULES.keys)
    for case in CASES:
        for module in case.make().modules():
            if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, known):
                yield module


def test_no_layer_without_a_function_counts_its_channels() -> None:
    wide = {11, 12, 17}  # the channels of the rows; sizes in space are smaller
    found = {type(m).__name__ for m in uncounted_modules() for v in vars(m).values() if type(v) is int and v in wide}
    assert found == set()
    assert len({type(module) for module in uncounted_modules()}) > 20


# -- the checks can fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operation", "test"),
    [
        ("sizes", "aten::convolution", counts),
        ("positions", "aten::slice", positions),
        ("norms", "aten::mean", keeps_width),
        ("readers", "aten::native_group_norm", counts),
    ],
)
def test_a_false_absence_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, operation: str, test: Callable[[Call], bool]
) -> None:
    monkeypatch.setitem(ASPECTS[name].reasons, operation, "for the test")
    assert contradictions(ASPECTS[name], test) == [operation]


def test_an_aspect_that_exists_cannot_be_declared_absent() -> None:
    with pytest.raises(RuleError, match="sizes of aten::convolution cannot be absent"):
        absent("aten::convolution", sizes="for the test")
    with pytest.raises(RuleError, match="sizes of aten::relu cannot be absent"):
        absent("aten::relu", sizes="for the test")
    with pytest.raises(RuleError, match="aten::relu: sizes was said to be absent"):
        fxprune.ops.resizes("aten::relu")(lambda site: None)


# -- extensions -------------------------------------------------------------------------------------------------


def test_old_names_of_the_decorators_warn_and_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two import paths that pages showed before."""
    from fxprune.rewrite.sizes import resizes
    from fxprune.rules.macs import multiplies

    for table in (aspects.MULTIPLY_ADDS, aspects.SIZES):
        monkeypatch.setitem(table.functions, "aspectstest::old", [])
        del table.functions["aspectstest::old"]

    def function(site: Any) -> None: ...

    with pytest.warns(DeprecationWarning, match=r"fxprune\.rules\.macs\.multiplies is fxprune\.ops\.multiplies now"):
        assert multiplies("aspectstest::old")(function) is function
    assert aspects.MULTIPLY_ADDS.of("aspectstest::old") is function
    with torch.library._scoped_library("aspectstest", "DEF") as library:
        library.define("old(Tensor x, int groups) -> Tensor")
        with pytest.warns(DeprecationWarning, match=r"fxprune\.rewrite\.sizes\.resizes is fxprune\.ops\.resizes now"):
            resizes(torch.ops.aspectstest.old, "old_method")(function)
        assert aspects.SIZES.at(torch.ops.aspectstest.old.default) is function
        assert aspects.SIZES.at("old_method") is function
    del aspects.SIZES.keys["old_method"], aspects.SIZES.keys["aspectstest::old"]


def test_the_names_that_extensions_need_are_public() -> None:
    aspects_of_operations = (
        "absent carries depends multiplies reads reads_constants recounts repositions resizes respells".split()
    )
    needed = ["Call", "Operand", "leaf", "rule", *aspects_of_operations]
    assert set(needed) <= set(fxprune.ops.__all__)
    assert [name for name in needed if not getattr(fxprune.ops, name).__doc__] == []
