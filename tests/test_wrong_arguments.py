"""Arguments of the wrong kind, for every public function: only errors of fxprune, or of Python's own call protocol."""

from __future__ import annotations

import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import cli, criteria, plot, pruner, regularizers, schedules, sparse
from fxprune.arguments import checks_arguments, described, fits

DECORATORS = {"leaf", "rule", "criterion", "measured"}
"""Functions that return a decorator: an operation may be anything that can be registered."""

PYTHON = re.compile(r"(missing|unexpected|required|multiple values|positional).*argument|takes .* arguments? but")
"""Messages of the errors that Python raises for a call that does not fit a signature."""


class Strange:
    """A value that nothing is prepared for: its `repr` raises, and so does its truth."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    def __bool__(self) -> bool:
        raise ZeroDivisionError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


NET, X = net(), torch.randn(2, 3, 8, 8)
ANALYSIS = fxprune.analyze(NET, X)
PLAN = ANALYSIS.plan(ratio=0.5)
SMALL = fxprune.transform(NET, X, ratio=0.5, path="fx")
RECORD = fxprune.record(SMALL)
SEARCHED = [
    fxprune.sensitivity(NET, X, lambda model: 0.5, ratios=[0.5]),
    fxprune.pareto(NET, X, lambda model: 0.5, budgets=[0.5]),
]

SIMPLE = st.sampled_from(
    [
        *(None, True, -1, 3, 2.5, float("nan"), 1e300, 10**400, 1j, "", "x", "0", b"x"),
        *(torch.ones(2), np.ones(3), torch.float32, range(3), Ellipsis, int, net, nn.Identity(), NET[0]),
    ]
)
HASHABLE = st.sampled_from([None, 3, "0", "x", 2.5, NET[0], nn.Identity(), nn.Conv2d, ("0", 1)])
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(HASHABLE, inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=4,
)
"""Values of any kind: numbers, texts, tensors, modules, classes and lists, tuples and dicts of them."""

GOOD: Mapping[str, Any] = {
    "model": net,
    "into": net,
    "module": lambda: nn.Linear(8, 8),
    "layer": lambda: nn.Linear(8, 8),
    "linear": lambda: nn.Linear(8, 8),
    "example_inputs": X,
    "small": SMALL,
    "plan": PLAN,
    "removed": {},
    "loader": [X],
    "weight": torch.ones(4, 3),
    "gradient": torch.ones(4, 3),
    "name": "made",
    "seed": None,
    "p": 2,
    "findings": ANALYSIS,
    "analysis": ANALYSIS,
    "groups": list(ANALYSIS.groups),
    "importance": "l2",
    "member": ANALYSIS.groups[0].members[0],
    "path": "file.pt2",
    "scores": {"0": torch.ones(8)},
}
"""A right value for the arguments of this name, or a function that makes one."""


def public() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Name, function, and its own right values: all public functions, and the methods of results."""
    for module in (fxprune, cli, criteria, plot, pruner, schedules, sparse):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if inspect.isfunction(value) and name not in DECORATORS and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value, {}
    gradual = fxprune.GradualPruner(net(), X, keep={"params": 0.5}, steps=2)
    groups = ANALYSIS.groups[0], ANALYSIS.groups[0].members[0]
    for made in (PLAN, RECORD, ANALYSIS, *groups, *SEARCHED, fxprune.summary(NET, SMALL, X), gradual):
        kind = type(made)
        for name in dict.fromkeys(name for base in kind.__mro__[:-1] for name in vars(base)):
            if not name.startswith("_") and inspect.ismethod(method := getattr(made, name)):
                yield f"{kind.__name__}.{name}", method, {"second": made, "path": "plan.json", "parameter": "0.weight"}
    for kind in (sparse.WeightMask, sparse.SparseLinear, pruner.RandomPruner, pruner.L1Pruner):
        yield kind.__name__, kind, {}
    yield "GradualPruner", fxprune.GradualPruner, {"keep": {"params": 0.5}, "steps": 2}
    for penalty in (regularizers.GroupSparsity, regularizers.GroupLasso, regularizers.GrowingRegularization):
        yield penalty.__name__, penalty, {"strength": 0.1}
    lasso = regularizers.GroupLasso(NET, X, 0.1)
    for method in (lasso.load_state_dict, lasso.add_gradients, lasso.attach):
        yield f"GroupLasso.{method.__name__}", method, {}
    prepared = pruner.L1Pruner()
    yield "L1Pruner.prepare", prepared.prepare, {}


CALLS = {name: (function, good) for name, function, good in public()}

FREE = {
    ("fxprune.sparse.break_even", "timer"),
    ("fxprune.sparse.activation_statistics", "prepare"),
    ("fxprune.sparse.insert_thresholds", "threshold"),
    ("fxprune.sparse.activation_statistics", "loader"),
    ("fxprune.criteria.coactivation_importance", "loader"),
    ("fxprune.criteria.sample_contributions", "loader"),
    ("fxprune.criteria.thinet_importance", "loader"),
    ("fxprune.sparse.coactivation_importance", "loader"),
}
"""Arguments that are the user's functions, or batches for the user's model: what these raise is the user's."""


def test_every_public_function_is_called() -> None:
    assert {"fxprune.transform", "fxprune.cli.main", "Plan.then", "Record.then"} <= set(CALLS)
    assert {"Analysis.plan", "Analysis.owner", "Group.reads"} - set(CALLS) == {"Group.reads"}
    assert len(CALLS) > 60


FEW = settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written into a folder of the test, and the command line has no words of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fxprune"])


@pytest.mark.parametrize("name", CALLS)
@FEW
@given(data=st.data())
def test_wrong_arguments_raise_no_foreign_error(name: str, data: st.DataObject) -> None:
    call_wrongly(name, data)


def untyped(function: Any) -> Any:
    """The same function, whose calls a type checker does not look at: those here are wrong on purpose."""
    return function


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@settings(FEW, max_examples=400)
@given(data=st.data())
def test_many_wrong_arguments_raise_no_foreign_error(name: str, data: st.DataObject) -> None:
    call_wrongly(name, data)


def call_wrongly(name: str, data: st.DataObject) -> None:
    """Calls a function with some wrong arguments; its errors have to be those of fxprune or of Python's protocol."""
    function, own = CALLS[name]
    good = {**GOOD, **own}
    parameters = inspect.signature(function).parameters.values()
    usual = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given_ = {p.name: good[p.name] for p in usual if p.default is p.empty and p.name in good}
    arguments: dict[str, Any] = {k: v() if inspect.isfunction(v) else v for k, v in given_.items()}
    if name == "fxprune.transform":
        arguments["ratio"] = 0.5
    if usual:
        for chosen in data.draw(st.lists(st.sampled_from([p.name for p in usual]), min_size=1, max_size=2)):
            if (name, chosen) not in FREE:
                arguments[chosen] = data.draw(VALUES, label=chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**arguments)
        except (fxprune.FxpruneError, OSError):  # no such file
            pass
        except TypeError as error:
            if not PYTHON.search(str(error)):
                raise


# -- the check itself -------------------------------------------------------------------------------------

KINDS: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [3, np.int64(3)], [True, 3.0, "3", None]),
    (float, [3, 0.5, np.float32(1), math.inf], [True, "0.5", None, 10**400]),
    (bool, [True, np.bool_(False)], [1, None, "yes"]),
    (str | None, ["x", None], [3, b"x"]),
    (Literal["a", "b"], ["a"], ["c", 1]),
    (Sequence[str], [["a"], ("a", "b"), ()], ["ab", [1], 3, {"a"}]),
    (Mapping[str, int], [{"a": 1}, {}], [{1: 1}, {"a": "b"}, [("a", 1)]]),
    (tuple[int, str], [(1, "a")], [(1,), ("a", 1), [1, "a"]]),
    (Callable[..., Any], [len, nn.ReLU()], [3, "len"]),
    (type[nn.Module], [nn.ReLU], [nn.ReLU(), int, 3]),
    (nn.Module, [nn.ReLU()], [nn.ReLU, None]),
    (Any, [None, 3], []),
]


@pytest.mark.parametrize(("kind", "right", "wrong"), KINDS, ids=[described(kind) for kind, _, _ in KINDS])
def test_a_value_is_compared_with_its_kind(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    assert all(fits(value, kind) for value in right)
    assert not any(fits(value, kind) for value in wrong)


@checks_arguments("model", "names", "shares", "more")
def called(
    model: nn.Module, *names: str, shares: Mapping[str, float] | None = None, last: int = 0, **more: bool
) -> str:
    return "done"


def test_a_list_of_slots_for_masked_is_named_with_its_parameter() -> None:
    with pytest.raises(fxprune.InputError) as caught:
        fxprune.masked(NET, {"conv1.weight": [1]})
    assert str(caught.value).splitlines() == [
        "removed must be a mapping {name: {dimension: indices}}, not {'conv1.weight': [1]}",
        "  at   masked(removed={'conv1.weight': [1]})",
        "  do   pass record(small).removed, a record, or a plan",
    ]


def test_a_wrong_argument_is_named_with_its_place_and_kind() -> None:
    with pytest.raises(fxprune.InputError) as caught:
        called(NET, shares={"conv1": "half"})
    assert str(caught.value).splitlines() == [
        "shares must be a dict from texts to numbers or None, not dict",
        "  at   called(shares={'conv1': 'half'})",
        "  why  its value 'half' for 'conv1' is not a number",
        "  do   pass a dict from texts to numbers or None",
    ]
    with pytest.raises(fxprune.InputError, match="names must be a text, not int"):
        called(NET, "a", 3)
    with pytest.raises(fxprune.InputError, match="more must be True or False, not str"):
        called(NET, other="yes")
    with pytest.raises(fxprune.CaptureError, match="not a model"):
        called("net")


T = TypeVar("T", nn.Module, torch.Size)


def test_a_variable_for_one_of_several_classes_is_one_of_them() -> None:
    @checks_arguments()
    def same(value: T) -> T:
        return value

    assert same(NET) is NET
    with pytest.raises(fxprune.CaptureError, match="not a model"):
        same(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fxprune.repair(SMALL, 3, [X]),
        lambda: fxprune.repair(3, NET, [X]),
        lambda: SEARCHED[0].plot(ax=set()),
        lambda: SEARCHED[1].plot(ax=3),
        lambda: ANALYSIS.plan(ratio=0.5).made_from(nn.Identity()),
    ],
)
def test_what_is_no_model_no_axes_or_no_analysis_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"not a model|must be"):
        call()


def test_a_call_that_does_not_fit_a_signature_says_what_does() -> None:
    with pytest.raises(fxprune.errors.UnknownArgumentError, match=r"write the name, as in load\(path, into=\.\.\.\)"):
        fxprune.load("small.safetensors", NET)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"takes 2 arguments by position, but 3 were given"):
        fxprune.transform(NET, X, 0.5)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"takes 1 argument by position, but 2 were(.|\n)*report\(format, analysis="):
        RECORD.report("html", ANALYSIS)  # type: ignore[misc]
    with pytest.raises(
        TypeError, match=r"'example_inputs'\n  at   transform\(Sequ.*\n.*\n.*\(model, example_inputs, \.{3}\)"
    ):
        untyped(fxprune.transform)(NET, ratio=0.5)
    with pytest.raises(TypeError, match=r"the argument 'into'(.|\n)*call load\(path, into=\.\.\., \.\.\.\)"):
        untyped(fxprune.load)("small.safetensors")
    with pytest.raises(TypeError, match="is missing the argument"):
        called()
    assert called(NET, "a", shares={"a": 1}, last="later", other=True) == "done"


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    with pytest.raises(fxprune.InputError, match="<Strange instance"):
        called(NET, shares=Strange())


REFUSED: dict[str, Callable[[], Any]] = {
    "also": lambda: fxprune.transform(NET, X, ratio=0.5, also=3),
    "prefer": lambda: fxprune.transform(NET, X, ratio=0.5, prefer=[]),
    "strict": lambda: fxprune.analyze(NET, X, strict="no"),
    "small": lambda: fxprune.save(NET, 3),
    "second": lambda: PLAN.then({}),
    "plan": lambda: ANALYSIS.cost(3),
    "removed": lambda: fxprune.masked(NET, {"0.weight": 3}),
    "a number as a key of ratio": lambda: fxprune.transform(NET, X, ratio={2.5: 0.5}),
    "another model's layer": lambda: fxprune.transform(NET, X, ratio={nn.Conv2d(3, 8, 3): 0.5}),
    "indices": lambda: fxprune.masked(NET, {"0.weight": {7: [0]}}),
    "a key of example inputs": lambda: fxprune.verify(NET, SMALL, {NET[0]: X, None: ""}),
    "another key": lambda: fxprune.analyze(NET, {0: X}),
    "names of a batch": lambda: fxprune.export(NET, "file.pt2", X, dynamic_batch=(None, "input")),
    "one name of a batch": lambda: fxprune.export(NET, "file.pt2", X, dynamic_batch=[{"input": 0}]),
    "a seed": lambda: criteria.sample_contributions(NET, [X], seed=10**400),
    "another seed": lambda: sparse.random_mask(4, 6, fan_in=2, seed=2**64),
    "a class among groups": lambda: criteria.scores_of(ANALYSIS, "l1", [int], None),
    "a number that is no float": lambda: schedules.as_schedule(10**400),
    "a ratio that is no float": lambda: fxprune.transform(NET, X, ratio={nn.Conv2d: 10**400}),
    "a threshold that is no float": lambda: sparse.sparsify(nn.Linear(8, 8), 10**400),
    "a module as a schedule": lambda: pruner.L1Pruner(NET[0]),
    "a list as counts": lambda: fxprune.transform(NET, X, counts=[("0", 3)]),
    "a list as a function": lambda: fxprune.repair(SMALL, NET, [X], inputs=[X]),
    "a list as a model": lambda: fxprune.recalibrate([NET], [X]),
    "a share that is no float": lambda: schedules.Constant(10**400),
    "a module": lambda: fxprune.masked(NET, {"0": {0: [0]}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_refused_before_anything_happens(name: str) -> None:
    with pytest.raises(fxprune.FxpruneError) as caught:
        REFUSED[name]()
    assert caught.value.what
    assert caught.value.at or caught.value.why or caught.value.do


def test_a_layer_of_the_model_is_a_key_of_ratio() -> None:
    assert fxprune.transform(NET, X, ratio={NET[0]: 0.5}, path="fx").get_submodule("0").out_channels == 4


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda net, x: fxprune.transform(net, x, ratio=0.5, foo=1), "transform"),
        (lambda net, x: fxprune.transform_(net, x, ratio=0.5, foo=1), "transform_"),
        (lambda net, x: fxprune.analyze(net, x).plan(ratio=0.5, foo=1), "Analysis.plan"),
        (lambda net, x: fxprune.analyze(net, x, foo=1), "analyze"),
        (lambda net, x: fxprune.cost(net, x, foo=1), "cost"),
    ],
    ids=["transform", "transform_", "plan", "analyze", "cost"],
)
def test_an_unknown_option_is_answered_in_the_name_of_what_was_called(call, name):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'foo'\n") as caught:
        call(net, torch.randn(1, 4))
    assert isinstance(caught.value, fxprune.FxpruneError)
    assert caught.value.at == f"{name}(foo=1)"
    assert (caught.value.why, caught.value.do[:12]) == (f"{name} has no argument of this name", "choose from ")


def test_a_scheduler_is_no_argument_and_a_near_name_is_guessed():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(1, 4)
    for function in (fxprune.transform, fxprune.transform_):
        with pytest.raises(TypeError, match="a scheduler goes on with its optimizer"):
            function(net, x, ratio=0.5, scheduler=object())
        with pytest.raises(TypeError, match='did you mean "importance"'):
            function(net, x, ratio=0.5, importence="l1")
        with pytest.raises(TypeError, match='did you mean "ratio"'):
            function(net, x, amount=0.5)


MEASURED = [
    function
    for function in vars(criteria).values()
    if inspect.isfunction(function) and "progress" in inspect.signature(function).parameters
]


@pytest.mark.parametrize("function", MEASURED, ids=lambda function: function.__name__)
def test_every_importance_that_is_measured_refuses_a_progress_that_is_none(function):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    more = {"loss": lambda net, x: net(x).sum()} if "loss" in inspect.signature(function).parameters else {}
    for progress in (torch.ones(2), "no", 1, None):
        with pytest.raises(fxprune.InputError, match="progress must be True or False"):
            function(net, [torch.randn(3, 4)], progress=progress, **more)


def test_swapped_arguments_are_told_their_order() -> None:
    net, x = nn.Linear(3, 2).eval(), torch.randn(1, 3)
    with pytest.raises(fxprune.FxpruneError, match=r"do   call verify\(model, small, example_inputs\)"):
        untyped(fxprune.verify)(net, (x,), net)
    with pytest.raises(fxprune.FxpruneError, match=r"do   call save\(small, path\)"):
        untyped(fxprune.save)("small.safetensors", net)
    with pytest.raises(fxprune.FxpruneError, match=r"do   call export\(model, path, example_inputs"):
        untyped(fxprune.export)(net, (x,), "small.onnx")
    with pytest.raises(fxprune.FxpruneError, match="do   pass a module"):
        untyped(fxprune.verify)(net, 3, (x,))  # no argument fits here
