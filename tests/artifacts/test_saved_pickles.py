"""Models that an earlier version pickled load: their classes are found under the names of the modules they stood in."""

from __future__ import annotations

import functools
import pickle

import pytest

import fxprune
import fxprune.sparse
from fxprune.old_modules import OLD_NAMES
from tests.forks import ended_forks

CLASSES = {
    "fxprune.record": "Record",
    "fxprune.cost.count": "Cost LayerCost",
    "fxprune.planning.plan": "Plan",
    "fxprune.planning.size": "Size",
    "fxprune.planning.structure": "Coupled Structure",
    "fxprune.rewrite.attention": "MultiheadAttention",
    "fxprune.rewrite.norm_layers": "LayerNorm RMSNorm",
    "fxprune.sparse.activations": "ThresholdActivation",
    "fxprune.sparse.coactivation_importance": "CoactivationImportance",
    "fxprune.sparse.comparison": "BreakEven Comparison",
    "fxprune.sparse.dynamic": "DynamicSparseConv2d DynamicSparseLinear",
    "fxprune.sparse.elements": "Guard",
    "fxprune.sparse.freezing": "FreezeReport",
    "fxprune.sparse.layouts": "SparseConv2d SparseLinear",
    "fxprune.sparse.magnitude": "MagnitudePruner",
    "fxprune.sparse.masked": "MaskedConv2d MaskedLinear",
    "fxprune.sparse.matrices": "Spec",
    "fxprune.sparse.regrow": "Choice Update",
    "fxprune.sparse.semi_structured": "SemiStructuredLinear",
    "fxprune.sparse.statistics": "ActivationStatistics LayerStatistics",
    "fxprune.sparse.surgery": "DynamicSurgery InverseDecay",
    "fxprune.sparse.thresholds": "Histogram Quantile Scheduled",
    "fxprune.sparse.weight_mask": "MaskedWeight WeightMask",
}
"""Module of version 0.1.0 -> the classes in it that models and results of the package hold."""


def as_pickle_names_it(module, name):
    """The bytes by which a pickle names a class: the class itself is their value."""
    return f"c{module}\n{name}\n.".encode()


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in CLASSES.items() for n in names.split()])
def test_a_class_is_found_where_it_stood(module, name):
    assert pickle.loads(as_pickle_names_it(module, name)).__name__ == name


def test_every_old_name_holds_a_class():
    assert set(OLD_NAMES) <= set(CLASSES)


UNIMPORTED = ("fxprune.record", "fxprune.sparse.thresholds")


@functools.cache
def loaded_where_nothing_is_imported():
    """Old name of a module -> how a process ended that has imported torch alone, and loads a pickle with this name."""
    pickles = [as_pickle_names_it(module, CLASSES[module].split()[0]) for module in UNIMPORTED]
    code = "import pickle, sys; assert 'fxprune' not in sys.modules; pickle.loads({!r})"
    return dict(zip(UNIMPORTED, ended_forks([(code.format(data), ()) for data in pickles]), strict=True))


@pytest.mark.parametrize("module", UNIMPORTED)
def test_an_old_name_is_found_where_nothing_of_the_package_is_imported_yet(module):
    done = loaded_where_nothing_is_imported()[module]
    assert (done.returncode, done.stderr) == (0, "")


def test_functions_keep_the_names_of_old_modules():
    assert fxprune.record.__name__ == "record"
    assert fxprune.cost.__name__ == "cost"
