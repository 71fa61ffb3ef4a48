"""`export`: a model as a file that runs without its code. The file is compared with the model before it is written."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune._record import record
from fxprune.arguments import checks_arguments, fits
from fxprune.artifacts.graph_comparison import worst_error
from fxprune.artifacts.graph_format import Format
from fxprune.artifacts.onnx_file import ONNX
from fxprune.artifacts.program import evaluation_copies, program_of
from fxprune.artifacts.pt2_file import PT2
from fxprune.capture.inputs import Inputs, bound, check_devices, check_initialised, check_unwrapped, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.tensors import Tensors
from fxprune.errors import FileError, FxpruneError, InputError, nearest
from fxprune.files import PathLike, replacing
from fxprune.paths import PATHS
from fxprune.progress import long_step

FORMATS: dict[str, Format] = {
    ".onnx": ONNX,
    ".pt2": PT2,
}
"""Suffix of a file -> format. A new format is a module that makes a `Format`, and a line here."""


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    path: the file. format: "onnx" or "pt2". bytes: the size of the file.
    error: the largest relative error of an output of the file; None if it was not compared.
    operators: name of an operator ("Conv" in ONNX, "aten::conv2d" in pt2) -> how often it occurs in the graph.
    reasons: sentences about parts of the model that the file does not have, and warnings of the exporter.
    """

    path: str
    format: str
    bytes: int
    error: float | None
    operators: Mapping[str, int]
    reasons: tuple[str, ...] = ()


@checks_arguments("path")
@public_call_on_model
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
    """Writes a model as a graph that runs without its code: ONNX (.onnx), or `torch.export` (.pt2).

    A deep copy in evaluation mode is exported; the model is only read. The bytes of the file are run on the example
    inputs and compared with the model before the file is written: a .pt2 by torch, an .onnx by onnxruntime if that is
    installed. A file is written completely or not at all. Outputs become plain tuples, lists and dicts of tensors.
    Data classes become dicts; other objects are left out (None in a .pt2) and named in `reasons`.

    Args:
        model: any module, also one that `transform` did not make.
        path: the file; its suffix is the format. An existing file is replaced.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments. The graph takes
            inputs of these sizes and dtypes.
        dynamic_batch: True makes a graph for any batch size: dimension 0 of all input tensors may have any size, the
            same for all. Names of arguments instead of True mean only the tensors of these arguments. The file is then
            compared at the batch size of the example, at one more, and at 1.
        opset: the version of the ONNX operators; None leaves it to the exporter.
        verify: run the file and compare it with the model.
        tolerance: the largest relative error max |file - model| / max |model| of an output that is accepted. None
            means sqrt(eps) of the coarsest floating dtype among parameters, buffers, inputs and outputs: 3.5e-4 for
            float32, 1.5e-8 for float64.

    Returns an `Exported`. Warns if onnxruntime cannot run the file, or if the model was made by the path "hooks".

    Raises `FileError` for a file that cannot be written, `InputError` for inputs that do not fit, `CaptureError` if
    torch cannot export the model, `VerificationError` if the file computes other numbers (an existing file then stays
    as it is), and `FxpruneError` if onnx or onnxscript is missing.

    >>> import os, tempfile, torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> small = fxprune.transform(net, torch.randn(2, 4), ratio=0.5)
    >>> made = export(small, os.path.join(tempfile.mkdtemp(), "small.pt2"), torch.randn(2, 4), dynamic_batch=True)
    >>> torch.export.load(made.path).module()(torch.randn(7, 4)).shape, dict(made.operators)
    (torch.Size([7, 2]), {'aten::linear': 2, 'aten::relu': 1})
    """
    kind = _format_of(path)
    _check_options(kind, opset, tolerance)
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a module, not {type(model).__name__}", do="pass an nn.Module")
    inputs = _checked_inputs(model, normalize(example_inputs))
    kind.refuse(model)
    varying = _batch_tensors(model, inputs, dynamic_batch)

    portable, exported = evaluation_copies(model)
    with long_step("export"):
        program, reasons = program_of(exported, inputs, varying)
        content = kind.write(program, opset)
    reasons = [*reasons, *content.warnings, *_from_record(model)]
    error = None
    if verify:
        runner = kind.read(content.data, program)
        if isinstance(runner, str):
            reasons.append(f"not compared: {runner}")
            warnings.warn(f'"{os.fspath(path)}" was not compared: {runner}', stacklevel=4)
        else:
            with long_step("comparison of the file"):
                error = worst_error(portable, runner, inputs, varying, tolerance, os.fspath(path))
    with replacing(path) as file:
        file.write(content.data)
    return Exported(
        os.fspath(path), kind.name, len(content.data), error, content.operators, tuple(dict.fromkeys(reasons))
    )


# -- refusals ---------------------------------------------------------------------------------------------


def _format_of(path: PathLike) -> Format:
    """Returns the format of a path. Raises `FileError` if the path cannot be written."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise FileError("the path must be text", why=f"got {type(text).__name__}", do="pass a str or a pathlib.Path")
    suffix = os.path.splitext(text)[1]
    if suffix not in FORMATS:
        hint = nearest(suffix, FORMATS) if suffix else "it has no suffix"
        raise FileError(f'cannot tell the format of "{text}"', why=hint, do=f"end it in {' or '.join(FORMATS)}")
    if os.path.isdir(text):
        raise FileError(f'cannot write "{text}"', why="it is a directory", do="pass the name of a file")
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.isdir(folder):
        raise FileError(f'cannot write "{text}"', why=f'there is no directory "{folder}"', do="make it first")
    return FORMATS[suffix]


def _check_options(kind: Format, opset: int | None, tolerance: float | None) -> None:
    if opset is not None and not kind.opsets:
        raise InputError(
            f"opset is given for a .{kind.name} file", why="opsets are versions of ONNX", do="leave it out"
        )
    if opset is not None and (type(opset) is not int or opset < 18):
        raise InputError(
            f"opset is {opset!r}",
            why="the exporter of torch writes opsets from 18 on",
            do="pass opset=18 or a newer one",
        )
    if tolerance is not None and (not fits(tolerance, float) or not 0 <= tolerance < math.inf):
        raise InputError(
            f"tolerance is {tolerance!r}",
            why="it must be a finite number that is not negative",
            do="pass a number such as 1e-4",
        )


def _checked_inputs(model: nn.Module, inputs: Inputs) -> Inputs:
    """Returns the inputs with keywords in the order of the signature. Raises if the model cannot run on them."""
    check_unwrapped(model)
    tensors = Tensors.of(model)
    check_initialised(tensors)
    check_devices(tensors, inputs)
    if tensors.weightless:
        raise InputError("the model is on the meta device", why="it has no weights to write", do="load weights first")
    names = list(bound(model, inputs).signature.parameters)
    order = {name: place for place, name in enumerate(names)}
    return inputs[0], dict(sorted(inputs[1].items(), key=lambda item: order.get(item[0], len(names))))


# -- the batch --------------------------------------------------------------------------------------------


def _batch_tensors(model: nn.Module, inputs: Inputs, dynamic_batch: bool | Sequence[str]) -> frozenset[int]:
    """Returns the ids of the input tensors whose dimension 0 is the batch."""
    if isinstance(dynamic_batch, str) or not fits(dynamic_batch, bool | Sequence[str]):
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
        raise InputError(
            f'dynamic_batch names no input: "{unknown}"',
            why=nearest(str(unknown), arguments),
            do="pass True, or names of arguments of forward",
        )
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


# -- the record -------------------------------------------------------------------------------------------


def _from_record(model: nn.Module) -> list[str]:
    """Returns sentences about a file that follow from the record of a small model: its path and mode."""
    try:
        made = record(model)
    except FxpruneError:
        return []
    reasons = []
    path = PATHS[made.path]
    if path.needs_hooks:
        zeros = "the graph puts zeros back into the outputs of smaller layers (index_copy)"
        reasons.append(f'made by "{made.path}": {zeros}')
        do = "prune on another path if the file should be smaller in its outputs too (path=, docs/guide.md)"
        warnings.warn(f"the exported model is {reasons[0]}; {do}", stacklevel=5)
    if made.training and not (path.keeps_class or path.fixes_mode):
        reasons.append("traced in training mode: what a function was told of the mode stays that")
    return reasons
