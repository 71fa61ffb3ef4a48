"""What every ATen operation does to channels: the registry, and one file per family of operations."""

from fxprune.rules import contraction, creation, elementwise, movement, normalization, pooling, reduction
from fxprune.rules.registry import Call, Event, Operand, Rule, apply, registered, rule, rule_for

__all__ = ["Call", "Event", "Operand", "Rule", "apply", "registered", "rule", "rule_for"]

FAMILIES = (elementwise, movement, contraction, reduction, normalization, pooling, creation)
"""The modules whose import registers the rules, in the order of docs/ops.md."""
