"""The mean magnitude of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.arguments import checks_names
from fxprune.criteria.activation import importance_from
from fxprune.criteria.statistics import measured_activations
from fxprune.criteria.table import measured


@measured("activation_mean")
@checks_names
def activation_mean_importance(
    model: nn.Module, batches: Iterable[Any], *, progress: bool = True, process_group: Any = None
) -> Callable[[Group], Tensor]:
    """score[c] = mean of |x| over the activations of channel c, over batches and positions.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", section 2.2
    (https://arxiv.org/abs/1611.06440). Activations are taken after the first activation function behind a layer: see
    `fxprune.sparse.activation_statistics`, which has more options.

    Args:
        model: the one that will be pruned. It runs in evaluation mode.
        batches: what one call of the model takes each, in the form of `example_inputs`.
        progress, process_group: as in `fxprune.criteria.taylor_importance`.

    Raises `InputError` for no batches, batches that do not fit, and activations that are not finite. The importance
    raises `PlanError` for a group without such a layer.

    """
    found = measured_activations(model, batches, progress=progress, process_group=process_group)
    return importance_from(found, "mean")
