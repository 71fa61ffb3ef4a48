"""The old names of modules whose classes are in models that were pickled before the classes moved.

Pickle finds a class by the name of its module. A module that is imported under its new name gets its old one too, so
that `torch.load(path, weights_only=False)` goes on reading such models.
"""

from __future__ import annotations

import sys

OLD_NAMES = {
    "fxprune.record": "fxprune._record",
    "fxprune.cost.count": "fxprune.costs.count",
    "fxprune.planning.size": "fxprune.planning.sizes",
    "fxprune.sparse.comparison": "fxprune.sparse.storage.comparison",
    "fxprune.sparse.coactivation_importance": "fxprune.criteria.coactivation",
    "fxprune.sparse.elements": "fxprune.sparse.freezing.optimizer_hooks",
    "fxprune.sparse.layouts": "fxprune.sparse.storage.layouts",
    "fxprune.sparse.magnitude": "fxprune.sparse.weights.magnitude",
    "fxprune.sparse.matrices": "fxprune.sparse.storage.matrices",
    "fxprune.sparse.regrow": "fxprune.sparse.dynamic.selection",
    "fxprune.sparse.semi_structured": "fxprune.sparse.storage.semi_structured",
    "fxprune.sparse.statistics": "fxprune.criteria.activation",
    "fxprune.sparse.surgery": "fxprune.sparse.weights.surgery",
    "fxprune.sparse.thresholds": "fxprune.sparse.activations.thresholds",
    "fxprune.sparse.weight_mask": "fxprune.sparse.weights.mask",
}
"""Old name -> name, in the order of the layout."""


def register() -> None:
    """Give every module of `OLD_NAMES` that is imported its old name too.

    The names are put into `sys.modules` and nowhere else, so that `fxprune.record` and `fxprune.cost` stay functions.
    """
    for old, new in OLD_NAMES.items():
        if new in sys.modules:
            sys.modules.setdefault(old, sys.modules[new])
