"""The base class of dispatch modes that watch the operations of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation
from fxprune.capture.scopes import Scopes

NOTHING = nn.Module()
"""An empty module: the one to watch while no other runs."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode for the operations of a run, which knows what the analysis has seen of them.

    observations: name of a node -> what the analysis has seen of it, in the mode of this run.
    node: the name of the node that runs.
    observation: what the analysis has seen of that node, by the keys of `scopes`; empty for a node that it has not.
    """

    def __init__(self, findings: Findings, observations: Mapping[str, Observation] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings = findings
        self.observations = findings.observed.observations if observations is None else observations
        self.scopes = Scopes(NOTHING)
        self.node = ""
        self.observation = Observation()

    def enter(self, node: str) -> None:
        """Begin a node of the graph: the next operations belong to it."""
        self.node = node
        self.observation = self.observations.get(node) or Observation()
        self.scopes.node(node)

    def for_next_call(self) -> Operations | None:
        """The operations to watch when the model is called once more; None if there is nothing to watch."""
        return None

    @contextlib.contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Watch a module and its submodules while they run. `module` may be a copy of the model."""
        self.scopes.follow(module, "")
        with self.scopes.watching(), self:
            yield
        self.scopes.follow(NOTHING, "")
