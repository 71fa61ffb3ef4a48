"""APoZ: how seldom a channel is zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.arguments import checks_names
from fxprune.criteria.activation import importance_from
from fxprune.criteria.statistics import measured_activations
from fxprune.criteria.table import measured


@measured("apoz")
@checks_names
def apoz_importance(
    model: nn.Module, batches: Iterable[Any], *, progress: bool = True, process_group: Any = None
) -> Callable[[Group], Tensor]:
    """score[c] = 1 - the share of zeros among the activations of channel c, over batches and positions.

    The average percentage of zeros of Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards
    Efficient Deep Architectures" (https://arxiv.org/abs/1607.03250). Activations are taken after the first activation
    function behind a layer: see `fxprune.sparse.activation_statistics`, which has more options.

    Args:
        model: the one that will be pruned. It runs in evaluation mode.
        batches: what one call of the model takes each, in the form of `example_inputs`.
        progress, process_group: as in `fxprune.criteria.taylor_importance`.

    Raises `InputError` for no batches, batches that do not fit, and activations that are not finite. The importance
    raises `PlanError` for a group without such a layer, and for one in which nothing is ever zero.

    """
    found = measured_activations(model, batches, progress=progress, process_group=process_group)
    return importance_from(found, "apoz")
