"""Sparse weights, connections and activations around the pass, in six packages, all of whose public names are here.

`masked`: layers with chosen connections. `storage`: layers that store what is not zero. `dynamic`: layers that move
their connections while they train. `weights`: pruning of single weights. `activations`: thresholds and statistics.
`freezing`: parameters that training leaves as they are. Criteria that need data stand in `fxprune.criteria`.
"""

from fxprune.old_modules import register as _register_old_names
from fxprune.sparse.activations import (
    ActivationStatistics,
    Histogram,
    Inserted,
    LayerStatistics,
    Quantile,
    Scheduled,
    ThresholdActivation,
    activation_statistics,
    importance_from,
    insert_thresholds,
    step_thresholds,
)
from fxprune.sparse.dynamic import (
    CoactivationImportance,
    DynamicSparseConv2d,
    DynamicSparseLinear,
    Update,
    coactivation,
    coactivation_importance,
    correlation,
    update_layers,
)
from fxprune.sparse.freezing import FreezeReport, freeze, freeze_zero_gradients, unfreeze
from fxprune.sparse.masked import (
    MaskedConv2d,
    MaskedLinear,
    banded_mask,
    block_mask,
    empty_outputs,
    from_prune,
    mask_from_adjacency,
    mask_from_graph,
    plain,
    random_mask,
    shrink,
    spy,
    to_prune,
)
from fxprune.sparse.storage import (
    BreakEven,
    Comparison,
    SemiStructuredLinear,
    SparseConv2d,
    SparseLinear,
    break_even,
    compare,
    densify,
    sparsify,
    sparsify_model,
)
from fxprune.sparse.weights import DynamicSurgery, InverseDecay, MagnitudePruner, WeightMask, squash_masks

__all__ = [
    "ActivationStatistics",
    "BreakEven",
    "CoactivationImportance",
    "Comparison",
    "DynamicSparseConv2d",
    "DynamicSparseLinear",
    "DynamicSurgery",
    "FreezeReport",
    "Histogram",
    "Inserted",
    "InverseDecay",
    "LayerStatistics",
    "MagnitudePruner",
    "MaskedConv2d",
    "MaskedLinear",
    "Quantile",
    "Scheduled",
    "SemiStructuredLinear",
    "SparseConv2d",
    "SparseLinear",
    "ThresholdActivation",
    "Update",
    "WeightMask",
    "activation_statistics",
    "banded_mask",
    "block_mask",
    "break_even",
    "coactivation",
    "coactivation_importance",
    "compare",
    "correlation",
    "densify",
    "empty_outputs",
    "freeze",
    "freeze_zero_gradients",
    "from_prune",
    "importance_from",
    "insert_thresholds",
    "mask_from_adjacency",
    "mask_from_graph",
    "plain",
    "random_mask",
    "shrink",
    "sparsify",
    "sparsify_model",
    "spy",
    "squash_masks",
    "step_thresholds",
    "to_prune",
    "unfreeze",
    "update_layers",
]

_register_old_names()
