"""fxprune: structured pruning as a `torch.fx` compiler pass."""

from fxprune._analyze import Analysis, analyze
from fxprune._record import Record, record
from fxprune._transform import transform, verify
from fxprune.analysis.findings import Group, Locked, Member
from fxprune.artifacts import Exported, export, load, save
from fxprune.costs import Cost, LayerCost, cost
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
from fxprune.ops import rule
from fxprune.ops.leaves import leaf
from fxprune.planning.algebra import PlanDiff
from fxprune.planning.plan import Plan
from fxprune.proof.compare import masked
from fxprune.pruner import masks_of

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
