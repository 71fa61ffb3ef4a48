"""The format ONNX: .onnx files, written by the exporter of torch and run by onnxruntime."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.artifacts.graph_format import Content, Format, Runner, innermost_cause
from fxprune.artifacts.program import quiet
from fxprune.capture.inputs import Inputs
from fxprune.errors import CaptureError, FileError, FxpruneError, VerificationError

LIMIT = 2**31 - 2**20
"""The largest number of bytes of weights in a file. Protobuf ends at 2 GiB, and the graph needs a part of it."""


def refuse(model: nn.Module) -> None:
    """Raises if packages for writing are missing, or if the weights do not fit into one file."""
    _check_packages()
    _check_size(model)


def write(program: torch.export.ExportedProgram, opset: int | None) -> Content:
    """Returns the file of a program, in this opset; None leaves the opset to the exporter."""
    try:
        with quiet() as warnings, torch.no_grad():  # the decompositions of torch run: some refuse complex gradients
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
    except ImportError as failure:
        do = "pip install -U onnx onnxscript: the exporter of this torch wants newer ones"
        raise FxpruneError("an .onnx file cannot be written", why=innermost_cause(failure), do=do) from failure
    except Exception as failure:
        node = _untranslated(failure, program)
        sizes = "leave out dynamic_batch, " if program.range_constraints else ""
        constant, do = _constant_that_varies(node)
        if "complex" in innermost_cause(failure):
            do = "write that operation with real and imaginary parts (torch.view_as_real, torch.view_as_complex)"
        raise CaptureError(
            "the graph cannot be said in ONNX",
            at="" if node is None else _place_of(node),
            why=constant or innermost_cause(failure),
            do=f"{sizes}write a .pt2, or {do or 'replace that operation in the model'}",
        ) from failure
    if opset is not None and made.model.opset_imports[""] != opset:
        raise CaptureError(
            f"the graph cannot be said in opset {opset} of ONNX",
            why=f"the exporter wrote opset {made.model.opset_imports['']}",
            do="leave out opset",
        )
    operators: Counter[str] = Counter()
    for graph in (made.model.graph, *made.model.functions.values()):
        operators.update(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.all_nodes())
    try:
        data: bytes = made.model_proto.SerializeToString()
    except Exception as failure:
        raise FileError(
            "the model does not fit into one .onnx file", why=innermost_cause(failure), do="write a .pt2"
        ) from failure
    return Content(data, dict(operators), warnings)


def read(data: bytes, program: torch.export.ExportedProgram) -> Runner | str:
    """Returns a function that runs the bytes of a file by onnxruntime; or a sentence that says why it cannot."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'fxprune[onnx]')"
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]
    from onnxruntime.capi.onnxruntime_pybind11_state import (  # type: ignore[import-untyped,unused-ignore]
        NotImplemented as Unknown,
    )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Unknown as failure:
        return f"onnxruntime cannot run it on this machine: {innermost_cause(failure)}"
    except Exception as failure:
        raise VerificationError(
            "onnxruntime does not take the graph",
            why=innermost_cause(failure),
            do="pass another `opset`, or take another onnxruntime",
        ) from failure
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


def _untranslated(failure: BaseException | None, program: torch.export.ExportedProgram) -> fx.Node | None:
    """The operation that the exporter could not translate; None if the error does not say it."""
    found = None
    while failure is not None and found is None:
        found, failure = re.search(r"translating node %?(\w+)", str(failure)), failure.__cause__
    return next((n for n in program.graph.nodes if found is not None and n.name == found[1]), None)


def _constant_that_varies(node: fx.Node | None) -> tuple[str, str]:
    """Why an operation cannot be said whose groups are a size that varies, and what to do; "" for any other."""
    if node is None or not isinstance(node.target, torch._ops.OpOverload) or "conv" not in node.target.__name__:
        return "", ""
    names = [argument.name for argument in node.target._schema.arguments]
    groups = {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("groups")
    if not isinstance(groups, fx.Node):
        return "", ""
    why = "its groups are a size that varies, such as the batch, and the groups of a convolution in ONNX are a constant"
    return why, "leave the weight alone and scale what the convolution reads and gives, without groups"


def _place_of(node: fx.Node) -> str:
    """An operation, its module and its line."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    lines = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace") or "")
    line = f" ({':'.join(lines[-1])})" if lines else ""
    return f"{node.target} in {(modules or [''])[-1] or 'the model'}{line}"


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise FxpruneError(
            "an .onnx file cannot be written",
            why=f"{' and '.join(missing)} cannot be imported",
            do="pip install 'fxprune[onnx]'",
        )


def _check_size(model: nn.Module) -> None:
    size = sum({id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
    if size > LIMIT:
        raise FileError(
            "the model does not fit into one .onnx file",
            why=f"its weights take {size} bytes, and a file takes {LIMIT}",
            do="write a .pt2, or export it in float16",
        )


ONNX = Format("onnx", opsets=True, refuse=refuse, write=write, read=read)
