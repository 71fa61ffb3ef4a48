"""Tensors that got smaller and that forward makes again where the example inputs do not lead, such as a longer table.

The code that makes them was not run, so it may compute other numbers from the smaller widths, or keep the old ones.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator

from torch import nn

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.capture.code import functions_of, is_torch
from fxprune.capture.writes import stores
from fxprune.channels.groups import Removal


def unseen_writes(findings: Findings, removal: Removal) -> list[str]:
    """Sentences about the buffers and attributes that lost slots and that forward may replace, but did not here."""
    smaller = (name for name in kept_slots(findings, removal) if not isinstance(findings.tensors[name], nn.Parameter))
    written = {_root(name) for name in findings.state}
    cut = {name for first in smaller for name in findings.names_of(first) if _root(name) not in written}
    if not cut or findings.captured.has_graph:
        return []
    around = {each for name in cut for each in _holders(name)}
    found: dict[str, None] = {}
    for path, module in findings.model.named_modules():
        for attribute in (*module._buffers, *module.__dict__):
            name = f"{path}.{attribute}" if path else attribute
            if name in around:
                for function in _methods_reached(type(module)):
                    if stores(function.__code__, attribute):
                        found[_sentence(name, function)] = None
    return list(found)


def _holders(name: str) -> Iterator[str]:
    """The name of a tensor and of each attribute and module around it: `b.cache[3]`, `b.cache`, `b`."""
    yield name
    yield from (name[: found.start()] for found in re.finditer(r"[.\[]", name))


def _root(name: str) -> str:
    """The name of the attribute that holds a tensor: `cache` of `cache[3]`."""
    return name.partition("[")[0]


def _methods_reached(kind: type[nn.Module]) -> Iterator[types.FunctionType]:
    """`forward` of a class, and the methods of the class that it names, and those that these name."""
    waiting, seen = ["forward"], {"__init__"}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for function in functions_of(inspect.getattr_static(kind, name, None)):
            if not is_torch(function.__module__):
                yield function
                waiting += function.__code__.co_names


def _sentence(name: str, function: types.FunctionType) -> str:
    code = function.__code__
    place = f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    why = "what it would compute then was not looked at"
    return f'"{name}" got smaller, and {place} makes it again for other inputs than these: {why}'
