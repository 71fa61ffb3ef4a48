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
from fxprune.criteria.by_layer import scores_by_layer
from fxprune.criteria.coactivation import CoactivationImportance, coactivation_importance
from fxprune.criteria.contributions import Contributions, sample_contributions
from fxprune.criteria.geometric_median import geometric_median_distances
from fxprune.criteria.gradients import GradientImportance, fisher_importance, taylor_importance
from fxprune.criteria.magnitude import filter_norms, norm_scores
from fxprune.criteria.scores import by_group, scores_of
from fxprune.criteria.table import CRITERIA, MEASURED, Criterion, Importance, comparable, criterion, measured
from fxprune.criteria.taylor import taylor_scores
from fxprune.criteria.thinet import ThiNetImportance, thinet_importance

__all__ = [
    "CRITERIA",
    "MEASURED",
    "ActivationStatistics",
    "CoactivationImportance",
    "Contributions",
    "Criterion",
    "GradientImportance",
    "Importance",
    "LayerStatistics",
    "ThiNetImportance",
    "by_group",
    "coactivation_importance",
    "comparable",
    "criterion",
    "filter_norms",
    "fisher_importance",
    "geometric_median_distances",
    "importance_from",
    "measured",
    "norm_scores",
    "sample_contributions",
    "scores_by_layer",
    "scores_of",
    "taylor_importance",
    "taylor_scores",
    "thinet_importance",
]

for _file in pkgutil.iter_modules(__path__):  # every criterion puts itself into its table when its file is imported
    importlib.import_module(f"{__name__}.{_file.name}")
