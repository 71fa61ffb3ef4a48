"""Bad input of every kind gets fxprune's own error: what, where, why, the next step, before anything changes."""

import ast
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 4 * 4, 5)).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 8, 8)


def mask(size: int, *removed: int) -> torch.Tensor:
    keep = torch.ones(size, dtype=torch.bool)
    keep[list(removed)] = False
    return keep


class RaisingForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).view(1, 7)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.14
        return torch.jit.trace(small_net(), image())


def transform(*args: Any, model: Callable[[], nn.Module] = small_net, **options: Any) -> Callable[[], Any]:
    return lambda: fxprune.transform(model(), *(args or (image(),)), **options)


def with_quantised_buffer() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that quantised tensors will go
        net[0].register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    return net


def other_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).eval()


def not_a_number() -> nn.Module:
    net = small_net()
    nn.init.constant_(net[0].weight, float("nan"))
    return net


def plan_of_another_model() -> Any:
    plan = fxprune.analyze(small_net(), image()).plan(ratio=0.5)
    return fxprune.transform(other_net(), image(), plan=plan)


def mixed_devices() -> Any:
    net = small_net()
    net[3].to("meta")
    return fxprune.transform(net, image(), ratio=0.5)


def zero_division(group: fxprune.Group) -> Any:
    return [1 / 0] * group.size


P = fxprune.PlanError
CASES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    # example inputs
    "no inputs": (transform(None, ratio=0.5), fxprune.InputError, ["inputs are missing", "NoneType is neither", "do "]),
    "a number": (transform(3, ratio=0.5), fxprune.InputError, ["of no use", "int is neither a tensor", "torch.randn"]),
    "no tensor": (transform((), ratio=0.5), fxprune.InputError, ["hold no tensor", "pass what one call"]),
    "empty batch": (
        transform(image()[:0], ratio=0.5),
        fxprune.InputError,
        ["is empty", "(0, 3, 8, 8)", "at least one"],
    ),
    "too many": (
        transform((image(), image()), ratio=0.5),
        fxprune.InputError,
        ["do not fit Sequential.forward(input)", "too many positional", "2 positional"],
    ),
    "wrong keyword": (
        transform({"y": image()}, ratio=0.5),
        fxprune.InputError,
        ["missing a required argument: 'input'", "['y']", "a dict that is one argument stands in a tuple: (inputs,)"],
    ),
    "wrong shape": (
        transform(torch.randn(1, 4, 8, 8), ratio=0.5),
        fxprune.CaptureError,
        ["forward raises", "at   0", "to have 3 channels, but got 4", "check that the model runs"],
    ),
    "wrong dtype": (
        transform(image().double(), ratio=0.5),
        fxprune.CaptureError,
        ["forward raises", "at   0", "double"],
    ),
    # models
    "not a model": (lambda: fxprune.transform("net", image(), ratio=0.5), fxprune.CaptureError, ["not a model", "str"]),
    "a class": (lambda: fxprune.transform(nn.Conv2d, image(), ratio=0.5), fxprune.CaptureError, ["not a model"]),
    "forward raises": (
        transform(ratio=0.5, model=RaisingForward),
        fxprune.CaptureError,
        ["forward raises", "the model (", "test_errors.py:", "shape '[1, 7]' is invalid", "check that"],
    ),
    "control flow": (
        transform(ratio=0.5, model=DataDependent, path="fx"),
        fxprune.CaptureError,
        ["DataDependent cannot be traced", "control flow", "trace it yourself"],
    ),
    "mixed devices": (
        mixed_devices,
        fxprune.InputError,
        ["several devices", "on cpu", '"3.weight" on meta', "move all"],
    ),
    "inputs elsewhere": (transform(image().to("meta"), ratio=0.5), fxprune.InputError, ["an example input on meta"]),
    "scripted": (
        lambda: fxprune.transform(scripted(), image(), ratio=0.5),
        fxprune.CaptureError,
        ["TopLevelTracedModule wraps the model", "cannot be looked into", "pass the Python model"],
    ),
    "compiled": (
        lambda: fxprune.transform(torch.compile(small_net(), backend="eager"), image(), ratio=0.5),
        fxprune.CaptureError,
        ["OptimizedModule wraps the model", "pass the model that was compiled"],
    ),
    "data parallel": (
        lambda: fxprune.transform(nn.DataParallel(small_net()), image(), ratio=0.5),
        fxprune.CaptureError,
        ["DataParallel wraps", "model.module"],
    ),
    "scripted inside": (
        transform(ratio=0.5, model=lambda: nn.Sequential(small_net(), scripted())),
        fxprune.CaptureError,
        ["submodule is scripted", 'at   "1"', "put the Python module in its place"],
    ),
    "quantised weight": (
        transform(ratio=0.5, model=with_quantised_buffer),
        fxprune.CaptureError,
        ["no plain tensor", 'at   "0.table"', "torch.qint8", "dequantize()"],
    ),
    "lazy": (
        transform(ratio=0.5, model=lambda: nn.LazyConv2d(3, 1)),
        fxprune.CaptureError,
        ["lazy", "run the model once"],
    ),
    # requests
    "nothing said": (transform(), P, ["exactly one of ratio, masks, keep and counts", "none of them"]),
    "both said": (
        transform(ratio=0.5, masks={}),
        P,
        ["exactly one of", "given: ratio, masks"],
    ),
    "ratio 1": (transform(ratio=1.0), P, ["[0, 1), not 1.0", "at least one channel"]),
    "ratio negative": (transform(ratio=-0.1), P, ["[0, 1), not -0.1"]),
    "ratio nan": (transform(ratio=float("nan")), P, ["[0, 1), not nan"]),
    "ratio text": (transform(ratio="0.5"), P, ["[0, 1), not '0.5'"]),
    "ratio true": (transform(ratio=True), P, ["[0, 1), not True"]),
    "ratio of no group": (transform(ratio={"conv*": 0.5}), P, ['ratio names nothing: "conv*"', "known names"]),
    "round_to 0": (transform(ratio=0.5, round_to=0), P, ["at least 1, not 0"]),
    "round_to 2.5": (transform(ratio=0.5, round_to=2.5), P, ["at least 1, not 2.5"]),
    "seed": (transform(ratio=0.5, importance="random", seed="a"), P, ["seed must be an integer", "'a'"]),
    # masks
    "masks a list": (transform(masks=[mask(8)]), P, ["must be a dict, not list", "{layer: bool tensor"]),
    "mask short": (transform(masks={"0": mask(7)}), P, ['mask of "0"', "wrong length", "(7,)", "8 output channels"]),
    "mask float": (transform(masks={"0": torch.ones(8) / 2}), P, ["not boolean", "torch.float32", "True = keep"]),
    "mask no tensor": (transform(masks={"0": [True] * 8}), P, ["not boolean", "it is list", "torch.tensor(...) makes"]),
    "mask of single weights": (
        transform(masks={"0": torch.ones(8, 3, 3, 3)}),
        P,
        ['at   masks["0"]', "(8, 3, 3, 3)", "mask.flatten(1).any(1)", "fxprune.sparse"],
    ),
    "mask all False": (
        transform(masks={"0": ~mask(8)}),
        P,
        ["removes every channel", "cannot be empty", "keep at least"],
    ),
    "mask unknown": (
        transform(masks={"conv": mask(8)}),
        P,
        ['masks names nothing: "conv"', "known names", "names, globs, modules"],
    ),
    "masks empty a group": (
        transform(
            masks={"0": mask(4, 0, 1), "1": mask(4, 2, 3)},
            model=lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval(),
        ),
        P,
        ["the request leaves", "empty", "masks of coupled layers add up", "keep at least one channel in all"],
    ),
    # importance
    "importance unknown": (
        transform(ratio=0.5, importance="l3"),
        P,
        ["unknown importance 'l3'", "use one of fpgm, l1, l2, bn_scale, lamp, random", "callable"],
    ),
    "importance short": (
        transform(ratio=0.5, importance=lambda group: torch.zeros(3)),
        P,
        ["wrong shape", 'groups "0", "3"', "(3,) for 2 channels", "one score per channel"],
    ),
    "importance NaN": (
        transform(ratio=0.5, importance=lambda group: torch.full((group.size,), float("nan"))),
        P,
        ["importance is NaN", 'groups "0", "3"', "2 of 2 scores", "higher means keep"],
    ),
    "importance raises": (
        transform(ratio=0.5, importance=zero_division),
        P,
        ["importance raises", "ZeroDivisionError"],
    ),
    "importance nothing": (
        transform(ratio=0.5, importance=lambda group: None),
        P,
        ["returns no numbers", 'groups "0", "3"'],
    ),
    "weights NaN": (transform(ratio=0.5, model=not_a_number), P, ["contain NaN", "0.weight", "repair"]),
    # names
    "ignore unknown": (transform(ratio=0.5, ignore="layr*"), P, ['ignore names nothing: "layr*"', "known names"]),
    "ignore a number": (
        transform(ratio=0.5, ignore=[3]),
        P,
        ["names nothing: group 3", "0 to 2", "names, globs, modules"],
    ),
    "ignore a stranger": (transform(ratio=0.5, ignore=nn.ReLU()), P, ["not part of the model"]),
    # plans
    "plan of another model": (plan_of_another_model, P, ["for another model", "0.weight", "(6, 3, 3, 3)", "analyze"]),
    "plan cuts a channel": (
        transform(plan=fxprune.Plan({"0.weight": {0: [1]}})),
        P,
        ["for another model", 'index 1 of "0.weight" dimension 0 alone', "coupled to others"],
    ),
    "plan index": (transform(plan=fxprune.Plan({"0.weight": {0: [100]}})), P, ["index 100", "(8, 3, 3, 3)"]),
    "plan dimension": (transform(plan=fxprune.Plan({"0.weight": {9: [1]}})), P, ["dimension 9", "(8, 3, 3, 3)"]),
    "plan name": (transform(plan=fxprune.Plan({"00.weight": {0: [1]}})), P, ['"00.weight"', 'did you mean "0.weight"']),
    "plan and ratio": (transform(plan=fxprune.Plan({}), ratio=0.5), P, ["a plan says already"]),
    "plan a dict": (transform(plan={"0.weight": {0: [1]}}), P, ["must be a fxprune.Plan, not dict", "analysis.plan"]),
    # after the model was pruned
    "no record": (lambda: fxprune.record(small_net()), fxprune.FxpruneError, ["has no record", "pass what transform"]),
    "masked stranger": (lambda: fxprune.masked(small_net(), {"x.weight": {0: [1]}}), P, ['no parameter "x.weight"']),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named(name: str) -> None:
    call, kind, fragments = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, fxprune.FxpruneError)
    for fragment in fragments:
        assert fragment in str(caught.value), f"{fragment!r} is missing in:\n{caught.value}"
    assert caught.value.do, f"there is no next step in:\n{caught.value}"


@dataclass
class Snapshot:
    """Everything about a model that an error must leave alone."""

    state: dict[str, torch.Tensor]
    identities: list[int]
    modes: list[bool]
    settings: list[str]

    @classmethod
    def of(cls, net: nn.Module) -> "Snapshot":
        return cls(
            copy.deepcopy(net.state_dict()),
            [id(t) for t in [*net.parameters(), *net.buffers(), *net.modules()]],
            [m.training for m in net.modules()],
            [repr(m) for m in net.modules()],
        )


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 2.0},
        {"masks": {"0": mask(8, 1), "3": mask(7)}},
        {"ratio": 0.5, "importance": zero_division},
        {"plan": fxprune.Plan({"0.weight": {0: [1]}})},
    ],
    ids=["ratio", "second mask", "importance", "plan"],
)
def test_the_model_is_left_alone(options: dict[str, Any]) -> None:
    net = small_net()
    net[1].train()
    before = Snapshot.of(net)
    with pytest.raises(fxprune.FxpruneError):
        fxprune.transform(net, image(), **options)
    after = Snapshot.of(net)
    assert before.identities == after.identities
    assert before.modes == after.modes
    assert before.settings == after.settings
    assert all(torch.equal(before.state[k], after.state[k]) for k in before.state)


REMOVES_NOTHING: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "ratio 0": (transform(ratio=0.0), ["the ratio is 0"]),
    "everything ignored": (transform(ratio=0.5, ignore=nn.Conv2d), ["all 3 groups are ignored"]),
    "nothing exact": (
        transform(
            ratio=0.5,
            exact=True,
            model=lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)),
        ),
        ["inexact (exact=True)"],
    ),
    "rounded away": (transform(ratio=0.1, round_to=8), ["rounding leaves every group whole", "round_to 8"]),
    "only an output": (
        transform(ratio=0.5, model=lambda: nn.Conv2d(3, 4, 3)),
        ["no channel of this model can be removed", "output of the model", "weight[0]"],
    ),
    "half a conv group": (transform(masks={"0": mask(8, 0, 3)}), ["2 masked channels stay (0, 3)", "only whole rows"]),
    "an output's mask": (transform(masks={"5": mask(5, 0)}), ["1 masked channel stays (0)", "output of the model"]),
}


@pytest.mark.parametrize("name", REMOVES_NOTHING)
def test_a_request_that_removes_nothing_says_why(name: str) -> None:
    call, fragments = REMOVES_NOTHING[name]
    with pytest.warns(fxprune.NothingRemovedWarning) as caught:
        small = call()
    text = "\n".join(str(w.message) for w in caught)
    for fragment in fragments:
        assert fragment in text
    assert not fxprune.record(small).removed
    assert fxprune.record(small).reasons


def test_no_layer_becomes_empty() -> None:
    for ratio in (0.5, 0.9, 0.999):
        small = fxprune.transform(small_net(), image(), ratio=ratio)
        assert all(size > 0 for tensor in small.parameters() for size in tensor.shape)
        assert small(image()).shape == (1, 5)


def test_a_wrong_rule_is_caught_and_the_group_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flip taken for the identity removes the wrong consumer columns: shapes agree, numbers do not."""
    from fxprune.ops import registry

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.middle = nn.Conv2d(6, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.stem(x)).flip(1))

    def identity(call: fxprune.ops.Call, self: fxprune.ops.Operand) -> fxprune.ops.Operand:
        return self

    options: dict[str, Any] = {"ratio": 0.4, "importance": "random", "seed": 0}
    fxprune.transform(Flipped(), image(), **options)
    monkeypatch.setitem(registry._RULES, "aten::flip", identity)
    monkeypatch.setitem(registry._PARAMETERS, identity, ("self",))
    with pytest.raises(fxprune.VerificationError) as caught:
        fxprune.transform(Flipped(), image(), **options)
    text = str(caught.value)
    assert 'group "middle"' in text
    assert "relative error is" in text
    assert "ignore" in text
    assert fxprune.transform(Flipped(), image(), **options, verify=False)(image()).shape == (1, 4, 8, 8)


def test_a_rule_that_contradicts_its_operation_locks_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.ops import registry

    def wrong(call: fxprune.ops.Call, self: fxprune.ops.Operand) -> fxprune.ops.Operand:
        return call.operand(self.vectors[:-1])

    monkeypatch.setitem(registry._RULES, "aten::relu", wrong)
    monkeypatch.setitem(registry._PARAMETERS, wrong, ("self",))
    with pytest.raises(fxprune.RuleError, match="contradicts the operation"):
        fxprune.analyze(small_net(), image(), strict=True)
    locked = [entry for entry in fxprune.analyze(small_net(), image()).locked if entry.event.op == "aten::relu"]
    assert len(locked) == 1
    assert "its rule failed, please report this: RuleError: the rule of aten::relu contradicts" in str(locked[0])
    assert ("0.weight", 0) in locked[0].slots


PARTS_OF_TRAINING = (
    "_follow sharded integrations regularizers _gradual.py _gradual_options.py _in_place.py _distill.py schedules.py "
    "sparse/dynamic sparse/activations sparse/freezing sparse/masked sparse/storage sparse/weights"
).split()
"""The files whose errors all have four parts."""


RAISED = (
    "FxpruneError InputError CaptureError PlanError FileError MissingFileError RuleError RewriteError "
    "VerificationError UnknownArgumentError UsageError MissingArgumentError"
).split()
"""The classes of errors that are raised for a user."""

REPEATED = {
    "_search/depth.py": "the text of an error that a file of steps keeps, with its next step",
    "_first_result.py": "a part of a warning, which has the next step",
}
"""The files that make an error without a next step of its own, one each, and why."""


def raised(path):
    """The errors of this package that a file makes: their line, and the names of the parts that they have."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if name in RAISED:
            empty = [k for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value == ""]
            yield node.lineno, {keyword.arg for keyword in node.keywords if keyword not in empty}


def test_every_error_says_what_to_do():
    package = Path(fxprune.__file__).parent
    files = sorted(package.rglob("*.py"))
    found = [(file.relative_to(package).as_posix(), *made) for file in files for made in raised(file)]
    assert len(found) > 500
    without = [(file, line) for file, line, parts in found if "do" not in parts]
    assert [f"{file}:{line}" for file, line in without if file not in REPEATED] == []
    assert sorted(file for file, _ in without) == sorted(REPEATED)


def test_errors_of_training_say_what_where_why_and_what_to_do():
    package = Path(fxprune.__file__).parent
    files = [file for part in PARTS_OF_TRAINING for file in sorted(package.glob(f"{part}/*.py")) or [package / part]]
    found = [(file, *made) for file in files for made in raised(file)]
    assert len(found) > 50
    assert [f"{file.name}:{line}" for file, line, parts in found if not {"at", "why", "do"} <= parts] == []
