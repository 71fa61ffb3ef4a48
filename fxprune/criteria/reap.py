"""REAP: whole experts are ranked by what they add where the router chooses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fxprune.arguments import checks_arguments
from fxprune.criteria.expert_calls import ExpertImportance, checked_protected, expert_calls
from fxprune.criteria.table import measured


@measured("reap")
@checks_arguments("protect", "progress")
def reap_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    protect: Mapping[str, Sequence[int]] | None = None,
    progress: bool = False,
) -> ExpertImportance:
    """score[e] = mean over the tokens that expert e gets, of the router's weight times the norm of what e makes.

    Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression"
    (https://arxiv.org/abs/2510.13999), equation 9. An expert that no token gets has the score 0. Runs the model once
    per batch, and its experts once more for each choice of a token.

    Args:
        model: the one that will be pruned, with experts in stacks of matrices, as those of `transformers`.
        batches: what one call of the model takes each, in the form of `example_inputs`.
        protect: path of a module of experts -> the numbers of those that stay.
        progress: True to show a progress bar.

    Raises `PlanError` for a model without such experts, and for other groups than those of experts.
    """
    calls = expert_calls(model, batches, norms=True, progress=progress)
    scores = {path: found.added / found.chosen.clamp(min=1) for path, found in calls.items()}
    return ExpertImportance(calls, scores, checked_protected(protect, calls))
