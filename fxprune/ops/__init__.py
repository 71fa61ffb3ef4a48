"""Everything about every ATen operation: the registries, and one file per family of operations."""

from fxprune.ops import (
    attention,
    contraction,
    creation,
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    transforms,
)
from fxprune.ops.registry import Call, Event, Operand, Rule, apply, registered, rule, rule_for

__all__ = ["Call", "Event", "Operand", "Rule", "apply", "registered", "rule", "rule_for"]

FAMILIES = (
    *(elementwise, movement, indexing, contraction, attention, recurrent),
    *(reduction, normalization, pooling, transforms, creation),
)
"""The modules whose import registers the rules, in the order of docs/ops.md."""
