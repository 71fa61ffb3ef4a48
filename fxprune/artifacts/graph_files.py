"""A program as the bytes of a file, ONNX or pt2, and those bytes run again."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.artifacts.program import cloned, quiet
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import no_fused_attention, same_random_state
from fxprune.capture.values import tensors_in
from fxprune.errors import CaptureError, FileError, VerificationError

Runner = Callable[[Inputs], list[torch.Tensor]]


def content_of(
    program: torch.export.ExportedProgram, kind: str, opset: int | None
) -> tuple[bytes, dict[str, int], list[str]]:
    """The bytes of the file, how often each operation occurs in it, and what the exporter warned of."""
    return _onnx(program, opset) if kind == "onnx" else _pt2(program)


def runner_of(program: torch.export.ExportedProgram, content: bytes, kind: str) -> Runner | str:
    """What runs the bytes of a file; a text that says why nothing can."""
    return _onnx_runner(program, content) if kind == "onnx" else _pt2_runner(content)


# -- torch.export -----------------------------------------------------------------------------------------


def _pt2(program: torch.export.ExportedProgram) -> tuple[bytes, dict[str, int], list[str]]:
    file = io.BytesIO()
    try:
        with quiet() as noted:
            torch.export.save(program, file)
    except Exception as failure:
        raise CaptureError("the graph cannot be written", why=_cause(failure)) from failure
    counts: Counter[str] = Counter()
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                counts[node.target._schema.name] += 1
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                counts[str(node.target)] += 1
    return file.getvalue(), dict(counts), noted


def _pt2_runner(content: bytes) -> Runner:
    try:
        with quiet():
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as failure:
        raise VerificationError("the graph cannot be loaded again", why=_cause(failure)) from failure

    def run(inputs: Inputs) -> list[torch.Tensor]:
        args, kwargs = cloned(inputs)
        with torch.no_grad(), same_random_state(), no_fused_attention():
            return tensors_in(module(*args, **kwargs))

    return run


# -- ONNX -------------------------------------------------------------------------------------------------


def _onnx(program: torch.export.ExportedProgram, opset: int | None) -> tuple[bytes, dict[str, int], list[str]]:
    try:
        with quiet() as noted:
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
    except Exception as failure:
        raise CaptureError(
            "the graph cannot be said in ONNX",
            why=_cause(failure),
            do="write a .pt2, or replace that operation in the model",
        ) from failure
    if opset is not None and made.model.opset_imports[""] != opset:
        raise CaptureError(
            f"the graph cannot be said in opset {opset} of ONNX",
            why=f"the exporter wrote opset {made.model.opset_imports['']}",
            do="leave out opset",
        )
    counts: Counter[str] = Counter()
    for graph in (made.model.graph, *made.model.functions.values()):
        counts.update(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.all_nodes())
    try:
        content: bytes = made.model_proto.SerializeToString()
    except Exception as failure:
        raise FileError(
            "the model does not fit into one .onnx file", why=_cause(failure), do="write a .pt2"
        ) from failure
    return content, dict(counts), noted


def _onnx_runner(program: torch.export.ExportedProgram, content: bytes) -> Runner | str:
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'fxprune[onnx]')"
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]
    from onnxruntime.capi.onnxruntime_pybind11_state import (  # type: ignore[import-untyped,unused-ignore]
        NotImplemented as Unknown,
    )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Unknown as failure:
        return f"onnxruntime cannot run it on this machine: {_cause(failure)}"
    except Exception as failure:
        raise VerificationError("onnxruntime does not take the graph", why=_cause(failure)) from failure
    ends = [*session.get_inputs(), *session.get_outputs()]
    if any("bfloat16" in end.type for end in ends):
        return "onnxruntime takes and gives no bfloat16 tensors in Python"
    names = program.graph_signature.user_inputs
    taken = {end.name for end in session.get_inputs()}

    def run(inputs: Inputs) -> list[torch.Tensor]:
        leaves = pytree.tree_leaves(inputs)
        given = zip(names, leaves, strict=True)
        feed = {name: t.detach().cpu().numpy() for name, t in given if isinstance(t, torch.Tensor) and name in taken}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def _cause(failure: BaseException) -> str:
    """The innermost cause of an error, in one line."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
