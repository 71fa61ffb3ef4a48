"""The base class of dispatch modes that watch the operations of a run in float64."""

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
"""An empty module: the one to watch while no other runs."""


class Watcher(Protocol):
    """Something that watches what runs inside a module."""

    def inside(self, module: nn.Module, path: str) -> contextlib.AbstractContextManager[None]:
        """Watch a module and its submodules while it runs. `module` may be a copy; `path` is its name in the model."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode for the operations of a run, which knows what the analysis has seen of them.

    node: the name of the node that runs.
    observation: what the analysis has seen of that node, by the keys of `scopes`.
    """

    def __init__(self, findings: Findings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings = findings
        self.scopes = Scopes(NOTHING)
        self.node = ""
        self.observation = Observation()

    def enter(self, node: str) -> None:
        """Begin a node of the graph: the next operations belong to it."""
        self.node, self.observation = node, self.findings.observed.observations[node]
        self.scopes.node(node)

    @contextlib.contextmanager
    def inside(self, module: nn.Module, path: str) -> Iterator[None]:
        """Watch a module and its submodules while it runs. `module` may be a copy; `path` is its name in the model."""
        self.scopes.follow(module, path)
        with self.scopes.watching(), self:
            yield
        self.scopes.follow(NOTHING, "")
