"""fxprune: structured pruning as a `torch.fx` compiler pass."""

from fxprune.analysis import Analysis, analyze
from fxprune.check import masked
from fxprune.cost import Cost, cost
from fxprune.errors import (
    CaptureError,
    FxpruneError,
    InputError,
    NothingRemovedWarning,
    PlanError,
    RewriteError,
    RuleError,
    VerificationError,
)
from fxprune.findings import Group, Locked, Member
from fxprune.planning.plan import Plan
from fxprune.record import Record, record
from fxprune.rules import rule
from fxprune.rules.leaves import leaf
from fxprune.transform import transform, verify

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "CaptureError",
    "Cost",
    "FxpruneError",
    "Group",
    "InputError",
    "Locked",
    "Member",
    "NothingRemovedWarning",
    "Plan",
    "PlanError",
    "Record",
    "RewriteError",
    "RuleError",
    "VerificationError",
    "analyze",
    "cost",
    "leaf",
    "masked",
    "record",
    "rule",
    "transform",
    "verify",
]
