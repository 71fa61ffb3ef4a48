"""A file format of graphs: a program becomes bytes, and the bytes are run again."""

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
    """A file before it is written.

    data: its bytes. operators: how often each operation occurs in the graph. warnings: those of the exporter.
    """

    data: bytes
    operators: Mapping[str, int]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Format:
    """A format, as the table `FORMATS` of `graph_export.py` holds it by its suffix.

    name: as `Exported.format` says it. opsets: True if it has versions of its operators, and `write` takes one.
    refuse: raises for a model that the format has no place for, before anything is traced.
    write: the content of a file, from a program and an opset or None.
    read: a runner of the bytes of a file that holds this program; or a sentence that says why none of them can be run
        here, without a comparison then. Raises `VerificationError` for bytes that are no graph.
    """

    name: str
    opsets: bool
    refuse: Callable[[nn.Module], None]
    write: Callable[[torch.export.ExportedProgram, int | None], Content]
    read: Callable[[bytes, torch.export.ExportedProgram], Runner | str]


def innermost_cause(failure: BaseException) -> str:
    """The innermost cause of an error, in one line."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
