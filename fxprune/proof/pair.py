"""The two models of a proof, and what is known of their difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.scopes import Key
from fxprune.capture.tensors import Tensors
from fxprune.channels.groups import Removal
from fxprune.proof.copies import Copying
from fxprune.proof.digests import Digester
from fxprune.proof.kept_weights import KeptWeights, kept_weights, making_weights


@dataclass(frozen=True)
class Pair:
    """The original and the small model. The fields are the arguments of `prove`."""

    findings: Findings
    small: nn.Module
    removal: Removal
    zeroed: Mapping[str, Any]
    exact: Mapping[str, torch.Tensor]
    factors: ScaleFactors
    folded: FoldedConstants | None
    digester: Digester = field(default_factory=Digester)

    @cached_property
    def statistics(self) -> bool:
        """True if the removal changes a statistic."""
        return bool((self.findings.inexact & self.removal.removed).any())

    @cached_property
    def _kept(self) -> KeptWeights:
        return kept_weights(self.findings.model, self.zeroed)

    def copying(self, *, plain: bool, moved: int = 0) -> Copying:
        """The copies of the reference. plain: True to remove nothing. moved: as in `Copying`."""
        return Copying(moved=moved) if plain else Copying(self._kept.zeroed, self._kept.values, moved=moved)

    @cached_property
    def norms_of_weights(self) -> frozenset[Key]:
        """The operations whose results differ because a norm of a weight counts columns that were folded."""
        return frozenset() if self.folded is None else frozenset(making_weights(self.findings))

    @cached_property
    def skipped(self) -> frozenset[str]:
        """The scopes whose operations are others in the small model."""
        originals = dict(self.findings.captured.module.named_modules())
        small = self.small.named_modules()
        replaced = {path for path, module in small if path and type(module) is not type(originals.get(path))}
        maps = () if self.folded is None else self.folded.maps  # what these nodes give lacks what a map adds later
        mapped = [node for node in self.findings.captured.graph.nodes if node.name in maps]
        scopes = [str(node.target) if node.op == "call_module" else f"%{node.name}" for node in mapped]
        return frozenset((*replaced, *(self.findings.preserved or {}), *scopes))

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the tensors of the small model that are not those of the original."""
        known = self.findings.captured.tensors
        own = ((found.name, found.tensor.shape) for found in self.tensors.unique)
        return frozenset(
            (*self.exact, *(name for name, shape in own if name not in known or shape != known[name].shape))
        )

    @cached_property
    def tensors(self) -> Tensors:
        """The parameters and buffers of the small model."""
        return Tensors.of(self.small)
