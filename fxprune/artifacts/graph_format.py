"""The interface of a file format of graphs: from a program to bytes, and from bytes to a function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.capture.inputs import Inputs

Runner = Callable[[Inputs], list[torch.Tensor]]
"""Runs a graph on inputs, and returns the tensors among its outputs."""


@dataclass(frozen=True)
class Content:
    """The content of a file before it is written.

    data: the bytes. operators: name of an operator -> how often it occurs in the graph. warnings: of the exporter.
    """

    data: bytes
    operators: Mapping[str, int]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Format:
    """A file format, an entry of the table `FORMATS` in `graph_export.py`.

    name: the value of `Exported.format`. opsets: True if the format has versions of its operators (`write` takes one).
    refuse: a function that raises for a model that the format cannot store; called before the export begins.
    write: a function from a program, and an opset or None, to the content of a file.
    read: a function from the bytes of a file and its program to a function that runs the file. It returns a sentence
        instead if the file cannot be run on this machine; the file is not compared then. Raises `VerificationError` for
        bytes that are no graph.
    """

    name: str
    opsets: bool
    refuse: Callable[[nn.Module], None]
    write: Callable[[torch.export.ExportedProgram, int | None], Content]
    read: Callable[[bytes, torch.export.ExportedProgram], Runner | str]


def innermost_cause(failure: BaseException) -> str:
    """Returns the innermost cause of an error, in one line."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
