"""HRank: the rank of feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.arguments import checks_names
from fxprune.criteria.activation import importance_from
from fxprune.criteria.statistics import measured_activations
from fxprune.criteria.table import measured


@measured("activation_rank")
@checks_names
def activation_rank_importance(
    model: nn.Module, batches: Iterable[Any], *, progress: bool = True, process_group: Any = None
) -> Callable[[Group], Tensor]:
    """score[c] = mean over samples of the rank of the map of channel c, a matrix of height x width.

    Lin et al. 2020, "HRank: Filter Pruning using High-Rank Feature Map" (https://arxiv.org/abs/2002.10179). Maps are
    taken after the first activation function behind a convolution: see `fxprune.sparse.activation_statistics`. The
    rank is that of `torch.linalg.matrix_rank` in float32.

    Args:
        model: the one that will be pruned. It runs in evaluation mode.
        batches: what one call of the model takes each, in the form of `example_inputs`.
        progress, process_group: as in `fxprune.criteria.taylor_importance`.

    Raises `InputError` for no batches, batches that do not fit, and activations that are not finite. The importance
    raises `PlanError` for a group without maps of two dimensions.

    """
    found = measured_activations(model, batches, progress=progress, process_group=process_group, ranks=True)
    return importance_from(found, "rank")
