"""The ATen operations: everything that the package knows of each, in one file per family, and the tables of it."""

from fxprune.ops import (
    attention,
    contraction,
    convolution,
    counting,
    creation,
    elementwise,
    grouped_products,
    indexing,
    linear_algebra,
    linear_layers,
    lookup,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    slices,
    splits,
    transforms,
    views,
    windows,
    writing,
)
from fxprune.ops.aspects import (
    absent,
    carries,
    depends,
    multiplies,
    reads,
    reads_constants,
    recounts,
    repositions,
    resizes,
    respells,
)
from fxprune.ops.leaves import leaf
from fxprune.ops.registry import Call, Event, Operand, Rule, apply, registered, rule, rule_for

__all__ = [
    "Call",
    "Event",
    "Operand",
    "Rule",
    "absent",
    "apply",
    "carries",
    "depends",
    "leaf",
    "multiplies",
    "reads",
    "reads_constants",
    "recounts",
    "registered",
    "repositions",
    "resizes",
    "respells",
    "rule",
    "rule_for",
]

FAMILIES = (
    *(elementwise, views, slices, splits, movement, windows, indexing, writing),
    *(contraction, grouped_products, linear_layers, convolution, lookup, attention, recurrent),
    *(reduction, normalization, pooling, transforms, linear_algebra, counting, creation),
)
"""The modules whose import registers the rules, in the order of docs/ops.md."""
