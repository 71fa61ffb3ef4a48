"""fxprune: structured pruning as a `torch.fx` compiler pass."""

from fxprune.analysis import Analysis, analyze
from fxprune.artifacts import Exported, export, load, save
from fxprune.check import masked
from fxprune.cost import Cost, LayerCost, cost
from fxprune.errors import (
    CaptureError,
    ChannelsStayWarning,
    FileError,
    FxpruneError,
    InputError,
    NothingRemovedWarning,
    PlanError,
    RewriteError,
    RuleError,
    VerificationError,
)
from fxprune.findings import Group, Locked, Member
from fxprune.planning.compose import PlanDiff
from fxprune.planning.plan import Plan
from fxprune.pruner import masks_of
from fxprune.record import Record, record
from fxprune.rules import rule
from fxprune.rules.leaves import leaf
from fxprune.transform import transform, verify

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "CaptureError",
    "ChannelsStayWarning",
    "Cost",
    "Exported",
    "FileError",
    "FxpruneError",
    "Group",
    "InputError",
    "LayerCost",
    "Locked",
    "Member",
    "NothingRemovedWarning",
    "Plan",
    "PlanDiff",
    "PlanError",
    "Record",
    "RewriteError",
    "RuleError",
    "VerificationError",
    "analyze",
    "cost",
    "export",
    "leaf",
    "load",
    "masked",
    "masks_of",
    "record",
    "rule",
    "save",
    "transform",
    "verify",
]
