"""Dispatch modes that watch the operations of a run in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation
from fxprune.capture.scopes import Scopes

NOTHING = nn.Module()
"""The module to watch while none runs."""


class Watcher(Protocol):
    """Sees what runs inside a module."""

    def inside(self, module: nn.Module, path: str) -> contextlib.AbstractContextManager[None]:
        """Watch a module, a copy of the one at `path`, and those in it while it runs."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a run.

    observation: what the analysis saw of the node that runs, by the keys of `scopes`.
    """

    def __init__(self, findings: Findings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings = findings
        self.scopes = Scopes(NOTHING)
        self.node = ""
        self.observation = Observation()

    def enter(self, node: str) -> None:
        """Take the next operations for those of this node."""
        self.node, self.observation = node, self.findings.observed.observations[node]
        self.scopes.node(node)

    @contextlib.contextmanager
    def inside(self, module: nn.Module, path: str) -> Iterator[None]:
        """Watch a module, a copy of the one at `path`, and those in it while it runs."""
        self.scopes.follow(module, path)
        with self.scopes.watching(), self:
            yield
        self.scopes.follow(NOTHING, "")
