"""A model as a file that runs without its code: ONNX, or a program of `torch.export`. Compared before it is written."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune._record import record
from fxprune.artifacts import graph_files
from fxprune.artifacts.program import Portable, evaluating, program_of, resized
from fxprune.capture.inputs import Inputs, bound, devices, initialised, normalize, unwrapped
from fxprune.capture.values import tensors_in
from fxprune.errors import FileError, FxpruneError, InputError, VerificationError, nearest
from fxprune.files import PathLike, replacing

SUFFIXES = {".onnx": "onnx", ".pt2": "pt2"}

LIMIT = 2**31 - 2**20
"""Bytes of weights that an ONNX file takes: protobuf ends at 2 GiB, and the graph needs some of it."""


@dataclass(frozen=True)
class Exported:
    """What `export` has written.

    path: the file. format: "onnx" or "pt2". bytes: its size.
    error: the largest relative error of what the file computes, over all outputs; None where it was not compared.
    operators: how often each operation occurs in the graph, "Conv" in ONNX, "aten::conv2d" in pt2.
    reasons: what the file does not hold of the model, and what the exporter warned of.
    """

    path: str
    format: str
    bytes: int
    error: float | None
    operators: Mapping[str, int]
    reasons: tuple[str, ...] = ()


def export(
    model: nn.Module,
    path: PathLike,
    example_inputs: Any,
    *,
    dynamic_batch: bool | Sequence[str] = False,
    opset: int | None = None,
    verify: bool = True,
    tolerance: float | None = None,
) -> Exported:
    """Write a model as a graph that runs without its code: ONNX (.onnx), or `torch.export` (.pt2).

    A deep copy in evaluation mode is exported; the model is only read. The bytes of the file are loaded and run on the
    example inputs, a .pt2 by torch and an .onnx by onnxruntime where that is installed, before they are written, whole
    or not at all. Outputs are plain tuples, lists and dicts of tensors: data classes become dicts, what is no tensor
    is left out (None in a .pt2) and named in `reasons`.

    Args:
        model: any module, made by `transform` or not.
        path: the file, its suffix says the format. An old one is replaced.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments. The graph takes
            inputs of these sizes and dtypes.
        dynamic_batch: the graph takes any size of dimension 0, one for all input tensors that have dimensions, or for
            those of the arguments named here. It is then compared at the batch of the example, one more, and 1.
        opset: the version of the ONNX operators; the exporter's own choice without it.
        verify: run and compare what the file holds.
        tolerance: the largest relative error, max |file - model| / max |model|, of any output. Without it sqrt(eps) of
            the coarsest floating dtype among parameters, inputs and outputs: 3.5e-4 for float32, 1.5e-8 for float64.

    Returns an `Exported`. Warns where onnxruntime could not compare, and where the model was made by "hooks".

    Raises `FileError` for a file that cannot be written, `InputError` for inputs that do not fit, `CaptureError` where
    torch cannot export the model, `VerificationError` where the file computes other numbers (no file is left behind
    then, and an old one stays), `FxpruneError` where onnx or onnxscript is missing.

    >>> import os, tempfile, torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> small = fxprune.transform(net, torch.randn(2, 4), ratio=0.5)
    >>> made = export(small, os.path.join(tempfile.mkdtemp(), "small.pt2"), torch.randn(2, 4), dynamic_batch=True)
    >>> torch.export.load(made.path).module()(torch.randn(7, 4)).shape, dict(made.operators)
    (torch.Size([7, 2]), {'aten::linear': 2, 'aten::relu': 1})
    """
    kind = _refuse_path(path)
    _refuse_options(kind, opset, tolerance)
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a module, not {type(model).__name__}", do="pass an nn.Module")
    inputs = _ordered(model, normalize(example_inputs))
    if kind == "onnx":
        _refuse_missing()
        _refuse_large(model)
    varying = _varying(model, inputs, dynamic_batch)

    portable = evaluating(model)
    program, reasons = program_of(portable, inputs, varying)
    content, operators, noted = graph_files.content_of(program, kind, opset)
    reasons = [*reasons, *noted, *_from_record(model)]
    error = None
    if verify:
        runner = graph_files.runner_of(program, content, kind)
        if isinstance(runner, str):
            reasons.append(f"not compared: {runner}")
            warnings.warn(f'"{os.fspath(path)}" was not compared: {runner}', stacklevel=2)
        else:
            error = max(
                _compared(portable, runner, case, tolerance, os.fspath(path)) for case in _cases(inputs, varying)
            )
    with replacing(path) as file:
        file.write(content)
    return Exported(os.fspath(path), kind, len(content), error, operators, tuple(dict.fromkeys(reasons)))


# -- refusals ---------------------------------------------------------------------------------------------


def _refuse_path(path: PathLike) -> str:
    """The format of a path that can be written."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise FileError("the path must be text", why=f"got {type(text).__name__}", do="pass a str or a pathlib.Path")
    suffix = os.path.splitext(text)[1]
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES) if suffix else "it has no suffix"
        raise FileError(f'cannot tell the format of "{text}"', why=hint, do="end it in .onnx or .pt2")
    if os.path.isdir(text):
        raise FileError(f'cannot write "{text}"', why="it is a directory", do="pass the name of a file")
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.isdir(folder):
        raise FileError(f'cannot write "{text}"', why=f'there is no directory "{folder}"', do="make it first")
    return SUFFIXES[suffix]


def _refuse_options(kind: str, opset: int | None, tolerance: float | None) -> None:
    if opset is not None and kind != "onnx":
        raise InputError("opset is given for a .pt2 file", why="opsets are versions of ONNX", do="leave it out")
    if opset is not None and (type(opset) is not int or opset < 18):
        raise InputError(f"opset is {opset!r}", why="the exporter of torch writes opsets from 18 on")
    if tolerance is not None and (
        isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf
    ):
        raise InputError(f"tolerance is {tolerance!r}", why="it must be a finite number that is not negative")


def _refuse_missing() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise FxpruneError(
            "an .onnx file cannot be written",
            why=f"{' and '.join(missing)} cannot be imported",
            do="pip install 'fxprune[onnx]'",
        )


def _refuse_large(model: nn.Module) -> None:
    size = sum({id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
    if size > LIMIT:
        raise FileError(
            "the model does not fit into one .onnx file",
            why=f"its weights take {size} bytes, and a file takes {LIMIT}",
            do="write a .pt2, or export it in float16",
        )


def _ordered(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs, keywords in the order of the signature, of a model that can be run on them."""
    unwrapped(model)
    initialised(model)
    devices(model, inputs)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise InputError("the model is on the meta device", why="it has no weights to write", do="load weights first")
    names = list(bound(model, inputs).signature.parameters)
    order = {name: place for place, name in enumerate(names)}
    return inputs[0], dict(sorted(inputs[1].items(), key=lambda item: order.get(item[0], len(names))))


# -- the batch --------------------------------------------------------------------------------------------


def _varying(model: nn.Module, inputs: Inputs, dynamic_batch: bool | Sequence[str]) -> frozenset[int]:
    """The ids of the input tensors whose dimension 0 is the batch."""
    if isinstance(dynamic_batch, str) or not isinstance(dynamic_batch, (bool, Sequence)):
        raise InputError(
            f"dynamic_batch is {dynamic_batch!r}",
            why="it is True, False or a sequence of names of arguments",
            do=f"pass ({dynamic_batch!r},)" if isinstance(dynamic_batch, str) else "",
        )
    if dynamic_batch is False:
        return frozenset()
    arguments = {**bound(model, inputs).arguments, **inputs[1]}
    named = list(arguments) if dynamic_batch is True else list(dynamic_batch)
    if not named:
        raise InputError("dynamic_batch names no argument", do="pass True, False or names of arguments")
    unknown = next((name for name in named if name not in arguments), None)
    if unknown is not None:
        raise InputError(f'dynamic_batch names no input: "{unknown}"', why=nearest(str(unknown), arguments))
    leaves = [(name, t) for name in named for t in pytree.tree_leaves(arguments[name]) if isinstance(t, torch.Tensor)]
    sizes = {name: t.shape[0] for name, t in leaves if t.ndim}
    if not sizes:
        raise InputError("there is no batch", why="no input tensor has a dimension", do="leave out dynamic_batch")
    if len({t.shape[0] for _, t in leaves if t.ndim}) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise InputError(
            "the inputs have no batch in common",
            why=f"of dimension 0, {listed}",
            do='pass the names of the arguments that have one, for example dynamic_batch=("x",)',
        )
    return frozenset(id(t) for _, t in leaves if t.ndim)


def _cases(inputs: Inputs, varying: frozenset[int]) -> Iterator[Inputs]:
    """What is compared: the example, and its samples in a batch of one more, and of one."""
    yield inputs
    if varying:
        size = next(t.shape[0] for t in pytree.tree_leaves(inputs) if id(t) in varying)
        yield resized(inputs, varying, size + 1)
        if size > 1:
            yield resized(inputs, varying, 1)


# -- the comparison ---------------------------------------------------------------------------------------


def _compared(
    portable: Portable,
    runner: Callable[[Inputs], list[torch.Tensor]],
    inputs: Inputs,
    tolerance: float | None,
    path: str,
) -> float:
    """The relative error on these inputs. Raises `VerificationError` if it is too large."""
    sizes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
    try:
        theirs = portable.run(inputs)
    except Exception as failure:
        raise InputError(
            "the model does not run on these inputs", at=f"inputs {sizes}", why=_line(failure)
        ) from failure
    try:
        ours = runner(inputs)
    except Exception as failure:
        raise VerificationError(
            f'what "{path}" would hold does not run', at=f"inputs {sizes}", why=_line(failure), do="no file was written"
        ) from failure
    error = difference(ours, theirs)
    allowed = _allowed(portable.model, inputs, theirs) if tolerance is None else tolerance
    if not error <= allowed:
        raise VerificationError(
            f'what "{path}" would hold computes other numbers than the model',
            at=f"inputs {sizes}",
            why=f"the relative error is {error:.1e}, above {allowed:.1e}; is there anything random in the model?",
            do="no file was written; a larger `tolerance` accepts it",
        )
    return error


def difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """max |ours - theirs| / max |theirs| over all outputs; infinite where shapes, dtypes, NaN or infinities differ.

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


def _allowed(model: nn.Module, inputs: Inputs, outputs: Sequence[torch.Tensor]) -> float:
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(inputs), *outputs]
    dtypes = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    return math.sqrt(max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0))


def _line(failure: BaseException) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0] if text else ''}"


def _from_record(model: nn.Module) -> list[str]:
    """What the way in which a small model was made means for its file."""
    try:
        made = record(model)
    except FxpruneError:
        return []
    reasons = []
    if made.path == "hooks":
        reasons.append('made by "hooks": the graph puts zeros back into the outputs of smaller layers (index_copy)')
        warnings.warn(f"the exported model is {reasons[0]}", stacklevel=3)
    if made.training and made.path == "fx":
        reasons.append("traced in training mode: what a function was told of the mode stays that")
    return reasons
