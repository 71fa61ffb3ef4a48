"""fxprune: structured pruning as a `torch.fx` compiler pass.

After `import fxprune` its public modules, such as `fxprune.plot` and `fxprune.sparse`, are available too. They are
imported when they are first used.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from fxprune._analyze import Analysis, analyze
from fxprune._distill import Distillation, Distilled, distillation
from fxprune._follow import Expanded, Followed, expand, follow
from fxprune._gradual import GradualPruner, PruningStep
from fxprune._in_place import transform_
from fxprune._quality import Quality
from fxprune._record import Record, record
from fxprune._repair import recalibrate, repair
from fxprune._search import Pareto, Sensitivity, pareto, sensitivity
from fxprune._summary import Summary, summary
from fxprune._transform import transform
from fxprune._verify import verify
from fxprune.analysis.findings import Group
from fxprune.analysis.members import Locked, Member
from fxprune.artifacts import Exported, export, from_pretrained, load, save
from fxprune.capture.traced import trace
from fxprune.costs import Cost, LayerCost, cost
from fxprune.errors import (
    AdapterLeftWarning,
    BudgetMissedWarning,
    CaptureError,
    ChannelsStayWarning,
    ClassLostWarning,
    FileError,
    FixedSizesWarning,
    FxpruneError,
    InputError,
    NothingRemovedWarning,
    NotProvenWarning,
    OptimizerLeftBehindWarning,
    OtherWeightsWarning,
    PlanError,
    RewriteError,
    RuleError,
    VerificationError,
)
from fxprune.old_modules import register as _register_old_names
from fxprune.ops import rule
from fxprune.ops.leaves import leaf
from fxprune.planning.difference import PlanDiff
from fxprune.planning.plan import Plan
from fxprune.proof.masked_reference import masked
from fxprune.pruner import masks_of
from fxprune.streaming import Streamed, stream

if TYPE_CHECKING:
    from fxprune import criteria as criteria
    from fxprune import ops as ops
    from fxprune import plot as plot
    from fxprune import pruner as pruner
    from fxprune import regularizers as regularizers
    from fxprune import schedules as schedules
    from fxprune import sparse as sparse

__version__ = "0.2.0"

__all__ = [
    "AdapterLeftWarning",
    "Analysis",
    "BudgetMissedWarning",
    "CaptureError",
    "ChannelsStayWarning",
    "ClassLostWarning",
    "Cost",
    "Distillation",
    "Distilled",
    "Expanded",
    "Exported",
    "FileError",
    "FixedSizesWarning",
    "Followed",
    "FxpruneError",
    "GradualPruner",
    "Group",
    "InputError",
    "LayerCost",
    "Locked",
    "Member",
    "NotProvenWarning",
    "NothingRemovedWarning",
    "OptimizerLeftBehindWarning",
    "OtherWeightsWarning",
    "Pareto",
    "Plan",
    "PlanDiff",
    "PlanError",
    "PruningStep",
    "Quality",
    "Record",
    "RewriteError",
    "RuleError",
    "Sensitivity",
    "Streamed",
    "Summary",
    "VerificationError",
    "analyze",
    "cost",
    "distillation",
    "expand",
    "export",
    "follow",
    "from_pretrained",
    "leaf",
    "load",
    "masked",
    "masks_of",
    "pareto",
    "recalibrate",
    "record",
    "repair",
    "rule",
    "save",
    "sensitivity",
    "stream",
    "summary",
    "trace",
    "transform",
    "transform_",
    "verify",
]

_MODULES = ("criteria", "ops", "plot", "pruner", "regularizers", "schedules", "sparse")
"""The public modules. All other modules are internal, and `dir(fxprune)` does not list them."""


if not TYPE_CHECKING:  # a type checker would take this for a module with every name

    def __getattr__(name: str) -> ModuleType:
        """Import a public module when it is first used."""
        if name in _MODULES:
            return importlib.import_module(f"fxprune.{name}")
        raise AttributeError(f"module 'fxprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]


_register_old_names()
