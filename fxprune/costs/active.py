"""The parameters that work for one token, in a model where a router chooses among experts.

Experts are a stack: a parameter of three or more dimensions, whose first one is that in which the model chooses
positions (topk). Of the stack, and of what its module has beside it with that dimension (such as biases), as many parts
work as are chosen. All other parameters work for every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.analyzer import Analyzer
from fxprune.analysis.findings import Findings, Subject
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import FrontEnd
from fxprune.capture.inputs import Inputs, check_initialised, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.program import as_module
from fxprune.capture.tensors import PARAMETER, Tensors
from fxprune.channels.groups import Axis, Removal
from fxprune.channels.vector import Vector
from fxprune.errors import PlanError
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks


@checks_arguments("model")
@public_call_on_model
def active_params(model: nn.Module | ExportedProgram, example_inputs: Any) -> int:
    """The parameters of a mixture of experts that work for one token.

    Raises `InputError` where the inputs do not fit, `CaptureError` where the forward raises, `PlanError` for a model
    whose experts are not seen.
    """
    module = as_module(model, example_inputs)
    tensors = Tensors.of(module)
    check_initialised(tensors)
    inputs = normalize(example_inputs)
    paths = without_hooks(paths_for(module, None, None, usual="class"))
    return ActiveParams(try_in_turn(paths, lambda path: _analyzed(module, tensors, inputs, path)).get()).full


def _analyzed(module: nn.Module, tensors: Tensors, inputs: Inputs, path: FrontEnd) -> Findings:
    captured = capture(module, inputs, path)
    return Analyzer(Subject(module, tensors, captured, inputs, (), None, ()), strict=False).run()


class ActiveParams:
    """The parameters for one token of the model that was analysed, and of the smaller ones that removals leave.

    full: those of the original.

    Raises `PlanError` for a model whose experts are not seen.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._chosen = _chosen(findings)
        if not self._chosen:
            raise PlanError(
                "the model has no experts that the analysis sees",
                why="no parameter of three dimensions has a first one in which the model chooses positions (topk)",
                do="give the budget as params: all parameters work for every token",
            )
        self.full = self.of()

    def of(self, removal: Removal | None = None) -> int:
        """The parameters for one token, with a removal those of the smaller model."""
        findings = self._findings
        if removal is None:
            tensors = findings.subject.tensors
            shapes: Mapping[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        else:
            tensors, shapes = findings.captured.tensors, shapes_after(findings, removal)
        total = 0
        for entry in tensors.unique:
            if entry.kind == PARAMETER:
                shape = shapes[entry.name]
                chosen = self._chosen.get(entry.name)
                total += math.prod(shape) if chosen is None else min(chosen, shape[0]) * math.prod(shape[1:])
        return total


def _chosen(findings: Findings) -> dict[str, int]:
    """Name of a parameter of experts -> how many of its parts the model chooses for a token."""
    first = {axis.parameter: axis for axis in findings.axes if axis.dim == 0}
    stacks: dict[str, tuple[Axis, int]] = {}
    for name, axis in first.items():
        found = [least for vector, least in findings.observed.minima if _same(findings, vector, axis.vector)]
        if found and findings.tensors[name].ndim > 2:
            stacks[name.rpartition(".")[0]] = axis, min(found)
    chosen = {}
    for name, axis in first.items():
        stack, count = stacks.get(name.rpartition(".")[0], (None, 0))
        if stack is not None and _same(findings, stack.vector, axis.vector):
            chosen[name] = count
    return chosen


def _same(findings: Findings, one: Vector, other: Vector) -> bool:
    """True if two dimensions have the same channels at the same slots, and some."""
    if one.representative is other.representative:
        return True
    if one.size != other.size:
        return False
    first, second = (findings.solution.channels_of(vector) for vector in (one, other))
    return bool(first) and len(first) == len(second) and all(map(np.array_equal, first, second))
