"""The state of a layer on the page: can channels of its outputs go, only of its inputs, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.analysis.findings import Findings

FREE, INPUTS, FIXED = "free", "inputs", "fixed"


class States:
    """The states of the nodes of one analysis."""

    def __init__(self, findings: Findings) -> None:
        self._first_name = findings.first_name
        self._dims: dict[str, set[int]] = {}
        for member in (member for group in findings.groups for member in group.members):
            self._dims.setdefault(member.parameter, set()).add(member.dim)

    def of(self, node: Mapping[str, Any]) -> str:
        """FREE if channels of a layer's outputs can go, INPUTS if only some that it reads, FIXED if none can.

        A parameter that no layer owns reads nothing, so it is FREE or FIXED; and so is a layer without known outputs.
        """
        able = {tensor["name"]: self._dims.get(self._first_name(tensor["name"]), set()) for tensor in node["tensors"]}
        if not any(able.values()):
            return FIXED
        width = node["width"]
        if width is None or node["kind"] == "parameter":
            return FREE
        return FREE if any(width["dim"] in able[name] for name in width["tensors"]) else INPUTS
