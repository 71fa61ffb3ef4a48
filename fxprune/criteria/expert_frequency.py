"""Router frequency: whole experts are ranked by how often the router chooses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fxprune.arguments import checks_arguments
from fxprune.criteria.expert_calls import ExpertImportance, checked_protected, expert_calls
from fxprune.criteria.table import measured


@measured("expert_frequency")
@checks_arguments("protect", "progress")
def expert_frequency_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    protect: Mapping[str, Sequence[int]] | None = None,
    progress: bool = False,
) -> ExpertImportance:
    """score[e] = the share of the tokens that expert e gets.

    The baseline "frequency" of Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression"
    (https://arxiv.org/abs/2510.13999), section 4. Arguments and errors are those of
    `fxprune.criteria.reap_importance`; `added` of its calls is 0.
    """
    calls = expert_calls(model, batches, norms=False, progress=progress)
    scores = {path: found.chosen / max(found.tokens, 1) for path, found in calls.items()}
    return ExpertImportance(calls, scores, checked_protected(protect, calls))
