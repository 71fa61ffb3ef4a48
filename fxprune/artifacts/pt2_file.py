"""The format of `torch.export`: .pt2 files, written and run by torch."""

from __future__ import annotations

import io
from collections import Counter

import torch

from fxprune.artifacts.graph_format import Content, Format, Runner, innermost_cause
from fxprune.artifacts.program import cloned, quiet
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import no_fused_attention, same_random_state
from fxprune.capture.values import tensors_in
from fxprune.errors import CaptureError, VerificationError


def write(program: torch.export.ExportedProgram, opset: int | None) -> Content:
    """Returns the file of a program. opset: not used, this format has none."""
    file = io.BytesIO()
    try:
        with quiet() as warnings:
            torch.export.save(program, file)
    except Exception as failure:
        raise CaptureError(
            "the graph cannot be written",
            why=innermost_cause(failure),
            do="change the part that is named, or save the small model itself (fxprune.save)",
        ) from failure
    operators: Counter[str] = Counter()
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                operators[node.target._schema.name] += 1
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                operators[str(node.target)] += 1
    return Content(file.getvalue(), dict(operators), warnings)


def read(data: bytes, program: torch.export.ExportedProgram) -> Runner:
    """Returns a function that runs the bytes of a file."""
    try:
        with quiet(), torch.device("cpu"):  # torch unpickles into the default device
            module = torch.export.load(io.BytesIO(data)).module()
    except Exception as failure:
        raise VerificationError(
            "the graph cannot be loaded again",
            why=innermost_cause(failure),
            do="save the small model itself (fxprune.save), or take another torch",
        ) from failure

    def run(inputs: Inputs) -> list[torch.Tensor]:
        args, kwargs = cloned(inputs)
        with torch.no_grad(), same_random_state(), no_fused_attention():
            return tensors_in(module(*args, **kwargs))

    return run


PT2 = Format("pt2", opsets=False, refuse=lambda model: None, write=write, read=read)
