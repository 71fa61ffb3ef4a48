"""Importance of the channels: one score per channel, higher means keep.

`CRITERIA` holds the criteria that are asked for by name, as in `transform(model, x, ratio=0.5, importance="l1")`;
`MEASURED` those that look at data: each makes an importance from a model and what was observed of it.

An importance of your own is a callable that takes a `Group` and returns one score per channel: pass it as it is, or
give it a name with `CRITERIA["mine"] = by_group(mine)`. A criterion of this package is a function in a file of its own,
with the paper it comes from in its docstring; its decorator, `criterion` or `measured`, puts it into the table.
"""

import importlib
import pkgutil

from fxprune.criteria.activation import ActivationStatistics, LayerStatistics, importance_from
from fxprune.criteria.activation_mean import activation_mean_importance
from fxprune.criteria.activation_rank import activation_rank_importance
from fxprune.criteria.activation_variance import activation_variance_importance
from fxprune.criteria.apoz import apoz_importance
from fxprune.criteria.by_layer import scores_by_layer
from fxprune.criteria.coactivation import CoactivationImportance, coactivation_importance
from fxprune.criteria.combined import CombinedImportance, product, weighted
from fxprune.criteria.contributions import Contributions, sample_contributions
from fxprune.criteria.expert_calls import ExpertCalls, ExpertImportance
from fxprune.criteria.expert_frequency import expert_frequency_importance
from fxprune.criteria.fisher_gate import GateImportance, fisher_gate_importance
from fxprune.criteria.geometric_median import geometric_median_distances
from fxprune.criteria.gradients import GradientImportance, fisher_importance, taylor_importance
from fxprune.criteria.magnitude import filter_norms, lp, norm_scores
from fxprune.criteria.obs import SurgeonImportance, obs_importance
from fxprune.criteria.reap import reap_importance
from fxprune.criteria.saved_scores import ChannelScores, load_scores, save_scores
from fxprune.criteria.scores import by_group, scores_of
from fxprune.criteria.table import CRITERIA, MEASURED, Criterion, Importance, comparable, criterion, in_loss, measured
from fxprune.criteria.taylor import taylor_scores
from fxprune.criteria.thinet import ThiNetImportance, thinet_importance

__all__ = [
    "CRITERIA",
    "MEASURED",
    "ActivationStatistics",
    "ChannelScores",
    "CoactivationImportance",
    "CombinedImportance",
    "Contributions",
    "Criterion",
    "ExpertCalls",
    "ExpertImportance",
    "GateImportance",
    "GradientImportance",
    "Importance",
    "LayerStatistics",
    "SurgeonImportance",
    "ThiNetImportance",
    "activation_mean_importance",
    "activation_rank_importance",
    "activation_variance_importance",
    "apoz_importance",
    "by_group",
    "coactivation_importance",
    "comparable",
    "criterion",
    "expert_frequency_importance",
    "filter_norms",
    "fisher_gate_importance",
    "fisher_importance",
    "geometric_median_distances",
    "importance_from",
    "in_loss",
    "load_scores",
    "lp",
    "measured",
    "norm_scores",
    "obs_importance",
    "product",
    "reap_importance",
    "sample_contributions",
    "save_scores",
    "scores_by_layer",
    "scores_of",
    "taylor_importance",
    "taylor_scores",
    "thinet_importance",
    "weighted",
]

for _file in pkgutil.iter_modules(__path__):  # every criterion puts itself into its table when its file is imported
    importlib.import_module(f"{__name__}.{_file.name}")
