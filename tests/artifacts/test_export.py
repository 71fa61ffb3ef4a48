"""Exported graphs: a file computes what the model computes, or there is no file."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import math
import warnings
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.artifacts import Exported, export, graph_export, onnx_file, program
from fxprune.artifacts.graph_comparison import difference
from fxprune.artifacts.graph_export import FORMATS
from fxprune.artifacts.graph_format import Content, Format
from fxprune.artifacts.program import Portable, evaluation_copies
from fxprune.errors import CaptureError, FileError, FxpruneError, InputError, VerificationError
from tests.support import call, randomise, relative_error

SUFFIXES = list(FORMATS)
Pair = namedtuple("Pair", "first second")


class Net(nn.Module):
    """A convolution whose statistics differ from those of a batch, and a dropout that only training knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: Any = None


class Cache:
    """Outputs that no graph returns."""


class Nested(nn.Module):
    """Arguments and results of every nesting; the batch is dimension 0 of all tensors but `table`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(
        self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]], *, table: Tensor | None = None, flag: bool = True
    ) -> Any:
        hidden = torch.relu(self.a(x)) + pair[0]
        if flag:
            hidden = hidden * pair[1]["scale"]
        if table is not None:
            hidden = hidden @ table
        out = self.b(hidden)
        return Result(out, {"pair": Pair(hidden, out.argmax(-1)), "cache": Cache(), "size": x.shape[0], "no": None})


def nested(batch: int, table: int | None = None) -> dict[str, Any]:
    inputs = {"pair": (torch.randn(batch, 6), {"scale": torch.rand(batch, 1)}), "x": torch.randn(batch, 4)}
    return inputs if table is None else {**inputs, "table": torch.randn(6, 6)}


def made(model: nn.Module, seed: int = 0) -> Any:
    return randomise(model.eval(), seed, weights=True)


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def run_file(path: Path, inputs: Any) -> list[Tensor]:
    """The outputs of a file, loaded by its runtime alone."""
    if path.suffix == ".pt2":
        loaded = torch.export.load(path).module()
        with torch.no_grad():
            return [t for t in pytree.tree_leaves(call(loaded, inputs)) if isinstance(t, Tensor)]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    named = {i.name: leaf for i, leaf in zip(session.get_inputs(), _by_name(session, given), strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, {k: v.numpy() for k, v in named.items()})]


def _by_name(session: Any, given: dict[str, Any]) -> list[Tensor]:
    """The leaves of arguments for the inputs of a session, which are named after the argument that holds them."""
    leaves = {name: [t for t in pytree.tree_leaves(v) if isinstance(t, Tensor)] for name, v in given.items()}
    return [leaves[max((n for n in leaves if i.name.startswith(n)), key=len)].pop(0) for i in session.get_inputs()]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- what a file computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rung", ["fx", "eager", "export", None])
def test_a_file_computes_what_the_model_computes(rung: str | None, suffix: str, tmp_path: Path) -> None:
    model, x = made(Net()), image()
    if rung is not None:
        model = fxprune.transform(model, x, ratio=0.5, path=rung)
    path = tmp_path / f"small{suffix}"
    result = export(model, path, x)
    assert files(tmp_path) == [path.name]
    assert (result.path, result.format, result.bytes) == (str(path), suffix[1:], path.stat().st_size)
    assert result.error is not None
    assert result.error < 1e-5
    assert result.reasons == ()
    other = image()
    with torch.no_grad():
        assert relative_error(run_file(path, other), [model(other)]) < 1e-5
        assert relative_error(run_file(path, other), [model(x)]) > 1e-2, "other inputs give other numbers"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_dynamic_batch_takes_any_size(batch: int, suffix: str, tmp_path: Path) -> None:
    model = fxprune.transform(made(Net()), image(), ratio=0.5)
    path = tmp_path / f"small{suffix}"
    export(model, path, image(batch), dynamic_batch=True)
    for size in (1, 2, 7):
        x = image(size)
        with torch.no_grad():
            assert relative_error(run_file(path, x), [model(x)]) < 1e-5, size
    fixed = export(model, path, image(batch))
    with pytest.raises(Exception, match=r"(?i)dimension|guard|shape"):
        run_file(path, image(batch + 1))
    assert fixed.error is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dynamic", [False, True, ["x", "pair"]], ids=str)
def test_nested_inputs_and_outputs_are_exported(dynamic: Any, suffix: str, tmp_path: Path) -> None:
    model, path = made(Nested()), tmp_path / f"nested{suffix}"
    inputs = nested(3, 6 if isinstance(dynamic, list) else None)
    result = export(model, path, inputs, dynamic_batch=dynamic)
    assert result.reasons == (
        "the output .hidden['cache'] is left out: Cache is no tensor",
        "the output .hidden['size'] is left out: int is no tensor",
    )
    others = nested(5 if dynamic else 3, 6 if isinstance(dynamic, list) else None)
    with torch.no_grad():
        want = model(**others)
    assert relative_error(run_file(path, others), [want.logits, *want.hidden["pair"]]) < 1e-5
    if suffix == ".pt2":
        program = torch.export.load(path).module()
        got = program(**others)
        assert type(got) is dict
        assert list(got) == ["logits", "hidden"]
        assert type(got["hidden"]["pair"]) is tuple
        assert got["hidden"]["cache"] is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_positional_and_keyword_arguments_are_the_same(suffix: str, tmp_path: Path) -> None:
    model, inputs = made(Nested()), nested(2)
    by_name = export(model, tmp_path / f"a{suffix}", {**inputs, "flag": False})
    by_place = export(model, tmp_path / f"b{suffix}", (inputs["x"], inputs["pair"]))
    mul = {".onnx": "Mul", ".pt2": "aten::mul"}[suffix]
    assert (mul in by_name.operators, mul in by_place.operators) == (False, True), "a flag is part of the graph"


def test_operators_are_those_of_the_file(tmp_path: Path) -> None:
    model, x = made(Net()), image()
    result = export(model, tmp_path / "a.onnx", x)
    stored = onnx.load(tmp_path / "a.onnx")
    assert dict(result.operators) == Counter(node.op_type for node in stored.graph.node)
    assert export(model, tmp_path / "a.pt2", x).operators == {
        "aten::conv2d": 1,
        "aten::batch_norm": 1,
        "aten::relu": 1,
        "aten::mean": 1,
        "aten::dropout": 1,
        "aten::linear": 1,
    }


def test_the_opset_is_that_of_the_file(tmp_path: Path) -> None:
    for opset in (18, 20):
        export(made(Net()), tmp_path / "a.onnx", image(), opset=opset)
        assert {o.domain: o.version for o in onnx.load(tmp_path / "a.onnx").opset_import}[""] == opset


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    model = made(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))).to(dtype)
    path, x = tmp_path / f"a{suffix}", torch.randn(4, 6, dtype=dtype)
    result = export(model, path, x)
    assert result.error is not None
    assert result.error <= 4 * torch.finfo(dtype).eps
    assert run_file(path, x)[0].dtype == dtype


def test_the_fast_path_of_attention_is_not_taken(tmp_path: Path) -> None:
    layer = made(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    before = torch.backends.mha.get_fastpath_enabled()
    for suffix in SUFFIXES:
        result = export(layer, tmp_path / f"a{suffix}", torch.randn(2, 5, 8))
        assert not any("transformer_encoder" in name for name in result.operators)
    assert torch.backends.mha.get_fastpath_enabled() == before


# -- the model is only read -------------------------------------------------------------------------------


class Counting(Net):
    """Writes to its buffer, to an attribute and to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.seen.append(x.shape[0])
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_in_training_mode_is_exported_in_evaluation_mode(suffix: str, tmp_path: Path) -> None:
    model, x = randomise(Net(), 0, weights=True).train(), image()
    model.conv.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    path = tmp_path / f"a{suffix}"
    result = export(model, path, x)
    assert result.reasons == ("the model is in training mode; the file holds what it does in evaluation mode",)
    assert [m.training for m in model.modules()] == [True, False, True, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        assert relative_error(run_file(path, x), [model.eval()(x)]) < 1e-5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_model_inputs_and_random_numbers_are_left_alone(suffix: str, tmp_path: Path) -> None:
    model, x = made(Counting()), image()
    kept, state = x.clone(), torch.get_rng_state()
    names = set(model.__dict__)
    assert export(model, tmp_path / f"a{suffix}", x).error is not None
    assert (float(model.calls), model.seen, set(model.__dict__)) == (0.0, [], names)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_printed_or_logged(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export(made(Net()), tmp_path / f"a{suffix}", image())
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")
    assert logging.root.manager.disable == 0


class Warns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("rows are\nsorted", UserWarning, stacklevel=1)
        return x + 1


def test_warnings_during_export_become_reasons(tmp_path: Path) -> None:
    found = export(Warns().eval(), tmp_path / "a.pt2", torch.ones(2), verify=False)
    assert found.reasons == ("the exporter warns: rows are",)


def test_the_weights_of_recurrent_layers_are_counted_in_a_warning() -> None:
    listed = ", ".join(f"self.{name}._flat_weights[{n}]" for name in ("rnn", "decoder.rnn") for n in range(16))
    with program.quiet() as texts:
        for names in (f"s {listed} were", " self._flat_weights[0] was", "s self.step were"):
            warnings.warn(f"The tensor attribute{names} assigned during export.\nMore", UserWarning, stacklevel=1)
    assert texts == [
        "the exporter warns: The 16 weights of rnn and 16 weights of decoder.rnn were assigned during export.",
        "the exporter warns: The 1 weight of the model was assigned during export.",
        "the exporter warns: The tensor attributes self.step were assigned during export.",
    ]


# -- no file of other numbers -----------------------------------------------------------------------------


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_random_numbers_of_a_program_are_drawn_from_the_same_state(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    assert export(Noise().eval(), tmp_path / "a.pt2", torch.ones(2, 4)).error == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_of_other_numbers_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        export(Noise().eval(), tmp_path / "a.onnx", torch.ones(2, 4))
    lines = str(caught.value).splitlines()
    assert lines[0] == f'what "{tmp_path / "a.onnx"}" would hold computes other numbers than the model'
    assert lines[1] == "  at   inputs (2, 4)"
    assert lines[2].startswith("  why  the relative error is ")
    assert lines[2].endswith(", above 3.5e-04; the model draws random numbers, and the file draws others")
    assert lines[3] == "  do   no file was written; a larger `tolerance` accepts it"
    assert files(tmp_path) == []
    loose = export(Noise().eval(), tmp_path / "a.onnx", torch.ones(2, 4), tolerance=1.0)
    assert loose.error is not None
    assert 0.01 < loose.error < 1
    unchecked = export(Noise().eval(), tmp_path / "b.onnx", torch.ones(2, 4), verify=False)
    assert unchecked.error is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_wrong_file_leaves_the_old_one(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model, x = tmp_path / f"a{suffix}", made(Net()), image()
    export(model, path, x)
    old = path.read_bytes()
    exact = Portable.run
    monkeypatch.setattr(Portable, "run", lambda self, inputs, **more: [t * 1.001 for t in exact(self, inputs, **more)])
    with pytest.raises(VerificationError, match=r"relative error is 1.0e-03"):
        export(model, path, x)
    assert path.read_bytes() == old
    assert files(tmp_path) == [path.name]


class OneBranch(nn.Module):
    """Computes something else for a batch of one, which a graph traced at a larger batch cannot show."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dynamic_batch_is_compared_at_other_sizes(suffix: str, tmp_path: Path) -> None:
    with pytest.raises((VerificationError, CaptureError)) as caught:
        export(OneBranch().eval(), tmp_path / f"a{suffix}", torch.ones(3, 4), dynamic_batch=True)
    assert "(1, 4)" in str(caught.value) or "dynamic batch" in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 2]), (3, [3, 4, 1])])
def test_which_batches_are_compared(
    batch: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    exact = Portable.run

    def spying(self: Portable, inputs: Any) -> list[Tensor]:
        seen.append(inputs[0][0])
        return exact(self, inputs)

    monkeypatch.setattr(Portable, "run", spying)
    x = image(batch)
    export(made(Net()), tmp_path / "a.pt2", x, dynamic_batch=True)
    assert [len(t) for t in seen] == sizes
    assert all(torch.equal(t[i], x[i % batch]) for t in seen for i in range(len(t)))


def test_the_difference_is_relative_and_infinite_where_outputs_do_not_compare() -> None:
    nan, inf = math.nan, math.inf
    a = torch.tensor([1.0, -4.0])
    assert difference([a], [a]) == 0
    assert difference([a + 0.5], [a]) == 0.125
    assert difference([a, a * 2], [a, a]) == 1
    assert difference([a], [a.double()]) == inf
    assert difference([a[:1]], [a]) == inf
    assert difference([a, a], [a]) == inf
    assert difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert difference([torch.ones(2)], [torch.zeros(2)]) == 1
    assert difference([torch.tensor([nan, inf])], [torch.tensor([nan, inf])]) == 0
    assert difference([torch.tensor([nan, 1.0])], [torch.tensor([1.0, 1.0])]) == inf
    assert difference([torch.tensor([inf, 1.0])], [torch.tensor([-inf, 1.0])]) == inf
    assert difference([torch.tensor([True])], [torch.tensor([False])]) == 1
    assert difference([torch.tensor([], dtype=torch.int64)], [torch.tensor([], dtype=torch.int64)]) == 0


# -- what is refused --------------------------------------------------------------------------------------


def refusal(error: type[FxpruneError], *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        export(*args, **options)
    assert type(caught.value) is error
    return str(caught.value)


def test_export_refuses_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("nothing is exported")

    monkeypatch.setattr(graph_export, "evaluation_copies", never)
    model, x = made(Net()), image()
    text = refusal(FileError, model, tmp_path / "small.onx", x)
    assert text == (
        f'cannot tell the format of "{tmp_path / "small.onx"}"\n'
        '  why  did you mean ".onnx"?\n'
        "  do   end it in .onnx or .pt2"
    )
    assert "it has no suffix" in refusal(FileError, model, tmp_path / "small", x)
    assert "known names: .onnx, .pt2" in refusal(FileError, model, tmp_path / "a.safetensors", x)
    text = refusal(FileError, model, tmp_path / "missing" / "a.onnx", x)
    assert f'why  there is no directory "{tmp_path / "missing"}"\n  do   make it first' in text
    (tmp_path / "dir.pt2").mkdir()
    assert "it is a directory" in refusal(FileError, model, tmp_path / "dir.pt2", x)
    assert "path must be a text or a path, not bytes" in refusal(InputError, model, b"a.onnx", x)


def test_export_refuses_options_that_make_no_sense(tmp_path: Path) -> None:
    model, x = made(Net()), image()
    onnx_path, pt2 = tmp_path / "a.onnx", tmp_path / "a.pt2"
    assert "opset is given for a .pt2 file" in refusal(InputError, model, pt2, x, opset=18)
    for opset in (17, "18", True):
        assert f"opset is {opset!r}" in refusal(InputError, model, onnx_path, x, opset=opset)
    for tolerance in (-1.0, math.nan, math.inf, True, "1"):
        assert f"tolerance is {tolerance!r}" in refusal(InputError, model, pt2, x, tolerance=tolerance)
    assert "do   pass ('x',)" in refusal(InputError, model, pt2, x, dynamic_batch="x")
    assert "dynamic_batch is 2" in refusal(InputError, model, pt2, x, dynamic_batch=2)
    assert "dynamic_batch names no argument" in refusal(InputError, model, pt2, x, dynamic_batch=())
    text = refusal(InputError, made(Nested()), pt2, nested(2), dynamic_batch=["x", "pairs"])
    assert 'dynamic_batch names no input: "pairs"\n  why  did you mean "pair"?' in text
    text = refusal(InputError, made(Nested()), pt2, nested(2, 6), dynamic_batch=True)
    assert "the inputs have no batch in common" in text
    assert "x has 2" in text
    assert "table has 6" in text
    assert 'dynamic_batch=("x",)' in text
    assert "there is no batch" in refusal(InputError, nn.Identity(), pt2, torch.tensor(1.0), dynamic_batch=True)
    assert files(tmp_path) == []


def test_export_refuses_models_and_inputs_that_do_not_fit(tmp_path: Path) -> None:
    path, model, x = tmp_path / "a.pt2", made(Net()), image()
    assert "model must be a module, not int" in refusal(InputError, 3, path, x)
    assert "example inputs are missing" in refusal(InputError, model, path, None)
    assert "do not fit Net.forward" in refusal(InputError, model, path, (x, x))
    assert "do not fit Net.forward" in refusal(InputError, model, path, {"y": x})
    assert "on several devices" in refusal(InputError, model, path, x.to("meta"))
    meta = Net().to("meta").eval()
    assert "the model is on the meta device" in refusal(InputError, meta, path, x.to("meta"))
    assert "lazy modules" in refusal(CaptureError, nn.LazyLinear(3), path, torch.ones(2, 3))
    assert "wraps the model" in refusal(CaptureError, nn.DataParallel(model), path, x)
    assert "Net cannot be exported" in refusal(CaptureError, model, path, torch.randn(2, 4, 8, 8))
    assert files(tmp_path) == []


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 4)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 3


class Decomposes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_export_refuses_models_that_no_graph_can_hold(suffix: str, tmp_path: Path) -> None:
    path, x = tmp_path / f"a{suffix}", torch.ones(2, 4)
    text = refusal(CaptureError, Fixed(), path, x, dynamic_batch=True)
    assert "Fixed cannot be exported with a dynamic batch" in text
    assert "code specialized it to be a constant (2)" in text
    assert "do   leave out dynamic_batch" in text
    assert export(Fixed().eval(), path, x).error == 0
    path.unlink()
    text = refusal(CaptureError, nn.Sequential(Decides()), path, x, dynamic_batch=True)
    assert "Sequential cannot be exported\n  at   0 (" in text
    assert f"{__file__}:" in text
    assert "GuardOnDataDependentSymNode" in text
    assert "do   write this line without a decision by numbers" in text
    assert "returns no tensor" in refusal(CaptureError, NoTensor(), path, x)
    if suffix == ".onnx":
        text = refusal(CaptureError, Decomposes(), path, x)
        assert "the graph cannot be said in ONNX" in text
        assert "No ONNX function found" in text
        assert "svd" in text
        assert "write a .pt2" in text
    else:
        assert export(Decomposes().eval(), path, x).error == 0
        path.unlink()
    assert files(tmp_path) == []


class Modulated(nn.Module):
    """A convolution whose weight is scaled by a style of each image, as in StyleGAN; alike: without groups."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.alike, self.weight, self.style = alike, nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Linear(3, 4)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)
        weights = self.weight[None] * style[:, None, :, None, None]
        size = weights.square().sum((2, 3, 4)).rsqrt()[:, :, None, None]
        if self.alike:
            return size * nn.functional.conv2d(x * style[:, :, None, None], self.weight, padding=1)
        batch, channels, height, width = x.shape
        weights = (weights * size[..., None]).reshape(-1, channels, 3, 3)
        y = nn.functional.conv2d(x.reshape(1, -1, height, width), weights, padding=1, groups=batch)
        return y.reshape(batch, -1, height, width)


def test_groups_of_the_size_of_the_batch_are_refused_in_onnx_and_the_way_that_is_named_works(tmp_path: Path) -> None:
    inputs = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    model, path = Modulated(False).eval(), tmp_path / "a.onnx"
    text = refusal(CaptureError, model, path, inputs, dynamic_batch=True)
    assert "at   aten.conv2d.default in the model (" in text
    assert "why  its groups are a size that varies" in text
    assert (
        "leave out dynamic_batch, write a .pt2, or leave the weight alone and scale what the convolution reads" in text
    )
    assert export(model, tmp_path / "a.pt2", inputs, dynamic_batch=True).error == 0
    alike = Modulated(True).eval()
    alike.load_state_dict(model.state_dict())
    assert torch.allclose(alike(*inputs), model(*inputs), atol=1e-5)
    assert export(alike, path, inputs, dynamic_batch=True).error < 1e-5


def test_a_graph_of_training_mode_is_refused(tmp_path: Path) -> None:
    x = image()
    model = randomise(Net(), 0, weights=True).train()
    small = fxprune.transform(model, x, ratio=0.5, path="export")
    assert "the model is a graph of training mode" in refusal(CaptureError, small, tmp_path / "a.pt2", x)
    traced = fxprune.transform(model, x, ratio=0.5, path="fx")
    result = export(traced, tmp_path / "a.pt2", x)
    assert any(reason.startswith("traced in training mode") for reason in result.reasons)
    with torch.no_grad():
        assert relative_error(run_file(tmp_path / "a.pt2", x), [traced.eval()(x)]) < 1e-5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_behind_hooks_warns(suffix: str, tmp_path: Path) -> None:
    x, path = image(), tmp_path / f"a{suffix}"
    small = fxprune.transform(made(Net()), x, ratio=0.5, path="hooks")
    with pytest.warns(UserWarning, match=r'made by "hooks": the graph puts zeros back'):
        result = export(small, path, x)
    assert result.reasons[0].startswith('made by "hooks"')
    with torch.no_grad():
        assert relative_error(run_file(path, x), [small(x)]) < 1e-5


# -- what is not installed, what is too large -------------------------------------------------------------


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes packages look as if they were not installed."""
    find = importlib.util.find_spec

    def hidden(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else find(name, *a))

    return hidden


def test_packages_that_are_too_old_for_the_exporter_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def export(*args: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_2_11'")

    monkeypatch.setattr(torch.onnx, "export", export)
    text = refusal(FxpruneError, made(Net()), tmp_path / "a.onnx", image())
    assert "onnxscript._framework_apis.torch_2_11" in text
    assert "pip install -U onnx onnxscript" in text


def test_without_onnx_only_pt2_is_written(hide: Any, tmp_path: Path) -> None:
    hide("onnxscript")
    text = refusal(FxpruneError, made(Net()), tmp_path / "a.onnx", image())
    assert text == (
        "an .onnx file cannot be written\n  why  onnxscript cannot be imported\n  do   pip install 'fxprune[onnx]'"
    )
    hide("onnxscript", "onnx", "onnxruntime")
    assert "onnx and onnxscript cannot" in refusal(FxpruneError, made(Net()), tmp_path / "a.onnx", image())
    assert export(made(Net()), tmp_path / "a.pt2", image()).error == 0


def test_without_onnxruntime_the_file_is_not_compared(hide: Any, tmp_path: Path) -> None:
    hide("onnxruntime")
    why = "onnxruntime is not installed (pip install 'fxprune[onnx]')"
    with pytest.warns(UserWarning, match="was not compared: onnxruntime is not installed"):
        result = export(made(Net()), tmp_path / "a.onnx", image())
    assert (result.error, result.reasons) == (None, (f"not compared: {why}",))
    assert export(made(Net()), tmp_path / "a.onnx", image(), verify=False).reasons == ()


def test_a_file_that_onnxruntime_cannot_run_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="onnxruntime cannot run it on this machine: .*Conv"):
        result = export(made(Net()).double(), tmp_path / "a.onnx", image().double())
    assert result.error is None
    assert "NOT_IMPLEMENTED" in result.reasons[0]
    onnx.checker.check_model(str(tmp_path / "a.onnx"))
    with pytest.warns(UserWarning, match="no bfloat16"):
        export(nn.LayerNorm(4).bfloat16().eval(), tmp_path / "a.onnx", torch.randn(2, 4).bfloat16())
    assert export(made(Net()).double(), tmp_path / "a.pt2", image().double()).error == 0


def test_weights_too_large_for_one_onnx_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made(Net()), image()
    size = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    monkeypatch.setattr(onnx_file, "LIMIT", size)
    assert isinstance(export(model, tmp_path / "a.onnx", x), Exported)
    (tmp_path / "a.onnx").unlink()
    monkeypatch.setattr(onnx_file, "LIMIT", size - 1)
    text = refusal(FileError, model, tmp_path / "a.onnx", x)
    assert text.startswith(
        f"the model does not fit into one .onnx file\n  why  its weights take {size} bytes, and a file takes {size - 1}"
    )
    assert "write a .pt2" in text
    assert files(tmp_path) == []
    assert export(model, tmp_path / "a.pt2", x).error == 0


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")

    @contextlib.contextmanager
    def dying(_: Any) -> Any:
        with fxprune_replacing(path) as file:
            file.write(b"half")
            raise OSError("disk full")
        yield

    from fxprune.files import replacing as fxprune_replacing

    monkeypatch.setattr(graph_export, "replacing", dying)
    with pytest.raises(OSError, match="disk full"):
        export(made(Net()), path, image())
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["a.pt2"]


def test_the_bytes_that_are_compared_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix, kind in list(FORMATS.items()):
        seen: list[bytes] = []

        def spying(data: bytes, program: Any, seen: list[bytes] = seen, kind: Format = kind) -> Any:
            seen.append(data)
            return kind.read(data, program)

        monkeypatch.setitem(FORMATS, suffix, dataclasses.replace(kind, read=spying))
        export(made(Net()), tmp_path / f"a{suffix}", image())
        assert [(tmp_path / f"a{suffix}").read_bytes()] == seen


def test_a_format_is_a_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that lists the operators as text; it cannot be run, and the result says so."""

    def write(program: Any, opset: int | None) -> Content:
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        return Content("\n".join(names).encode(), Counter(names), ["a warning"])

    def read(data: bytes, program: Any) -> str:
        return "nothing runs text"

    text = Format("txt", opsets=False, refuse=lambda model: None, write=write, read=read)
    monkeypatch.setitem(FORMATS, ".txt", text)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    with pytest.warns(UserWarning, match="was not compared: nothing runs text"):
        result = export(net, tmp_path / "a.txt", torch.randn(1, 2))
    assert (tmp_path / "a.txt").read_text() == "aten.linear.default\naten.relu.default"
    assert (result.format, result.error, result.operators) == (
        "txt",
        None,
        {"aten.linear.default": 1, "aten.relu.default": 1},
    )
    assert result.reasons == ("a warning", "not compared: nothing runs text")
    with pytest.raises(FileError, match=r"end it in \.onnx or \.pt2 or \.txt"):
        export(net, tmp_path / "a.text", torch.randn(1, 2))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(500, 64), nn.Linear(64, 500, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.relu(self.embed(ids)))

    x = torch.from_numpy(np.arange(6).reshape(2, 3))
    for suffix in SUFFIXES:
        result = export(made(Tied()), tmp_path / f"a{suffix}", x)
        assert result.bytes < 1.5 * 500 * 64 * 4, suffix


class Anchored(nn.Module):
    """A head that makes its anchors at the first call and whenever the size changes, as detectors do."""

    def __init__(self, traced: bool) -> None:
        super().__init__()
        self.layer, self.strides, self.traced = nn.Conv2d(3, 4, 1), torch.tensor([2.0]), traced
        self.shape: Any = None
        self.anchors: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            stride = self.strides[0] if self.traced else 2 if self.strides[0] > 1 else 1
            self.anchors["x"] = (torch.arange(x.shape[-1], dtype=x.dtype) + 0.5) * stride
            self.shape = x.shape
        return self.layer(x) + self.anchors["x"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("warm", [False, True])
def test_what_forward_keeps_from_its_first_call_is_no_tensor_of_the_export(
    tmp_path: Path, suffix: str, traced: bool, warm: bool
) -> None:
    model, x = made(Anchored(traced)), image()
    if warm:
        model(x)
    result = export(model, tmp_path / f"a{suffix}", x)
    assert result.error is not None
    again = any(text.startswith("exported after a first call") for text in result.reasons)
    assert again == (not traced and not warm)
    assert all(type(anchors) is Tensor for anchors in model.anchors.values())
    assert len(model.anchors) == warm


def test_the_copy_to_run_and_the_one_to_export_share_their_parameters() -> None:
    model = made(Net())
    first, second = (dict(copied.model.named_parameters()) for copied in evaluation_copies(model))
    assert all(first[name] is second[name] is not tensor for name, tensor in model.named_parameters())


class Keeps(nn.Module):
    """A loss that stays in an attribute after a call, as in mixtures of experts, with its gradient function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.loss = nn.Linear(4, 8), nn.Linear(8, 2), None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        self.loss = hidden.mean()
        return self.b(hidden)


def test_a_tensor_that_a_call_has_left_does_not_hinder_export(tmp_path: Path) -> None:
    model, x = Keeps().eval(), torch.randn(2, 4)
    model(x)
    assert model.loss.grad_fn is not None
    result = export(model, tmp_path / "a.pt2", x)
    assert result.error < 1e-6
    assert model.loss.grad_fn is not None


def test_an_attribute_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    model, x = Keeps().eval(), torch.randn(2, 4)
    model.rest = (each for each in (x,))
    text = refusal(CaptureError, nn.Sequential(model), tmp_path / "a.pt2", x)
    assert "Sequential cannot be copied\n  at   0.rest, of type generator\n" in text


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1]


@pytest.mark.parametrize("batch", [False, True])
def test_a_packed_sequence_has_a_place_and_a_next_step(batch: bool, tmp_path: Path) -> None:
    inputs = (torch.randn(2, 5, 4), torch.tensor([5, 3]))
    text = refusal(CaptureError, Packs().eval(), tmp_path / "a.pt2", inputs, dynamic_batch=batch)
    assert "Packs cannot be exported\n  at   rnn (" in text
    assert "do   give the recurrent layer padded tensors" in text


def test_a_copy_knows_what_it_dropped() -> None:
    copied, _ = evaluation_copies(made(Nested()))
    assert [t.shape for t in copied.run(((), nested(2)))] == [(2, 3), (2, 6), (2,)]
    assert copied.dropped == {".hidden['cache']": "Cache", ".hidden['size']": "int"}


def test_a_file_needs_none_of_this_library(tmp_path: Path) -> None:
    export(made(Nested()), tmp_path / "a.pt2", nested(2))
    loaded = torch.export.load(io.BytesIO((tmp_path / "a.pt2").read_bytes()))
    assert "fxprune" not in str(loaded.call_spec)
    assert "Result" not in str(loaded.call_spec)
