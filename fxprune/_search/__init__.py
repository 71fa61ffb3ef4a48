"""Choices that are measured: small models of one analysis are cut, repaired and scored.

The files, in the order of their use: `samples.py` divides the data, `measure.py` says how good a model is,
`candidates.py` cuts and repairs, `steps.py` keeps what is measured in a file. `ratios.py` and `budgets.py` have what
users call, `results.py` and `drawing.py` show what was found. `depth.py` chooses
the residual branches that go. `widths.py` is the scope "search"; its moves are in
`allotment.py`, its settings in `settings.py`.
"""

from fxprune._search.budgets import pareto
from fxprune._search.depth import DepthRequest, chosen_branches
from fxprune._search.measure import measure_of, number_of
from fxprune._search.ratios import sensitivity
from fxprune._search.results import Pareto, ParetoPoint, Sensitivity, SensitivityPoint
from fxprune._search.samples import samples_of
from fxprune._search.settings import search_settings
from fxprune._search.widths import SearchData, searched

__all__ = [
    "DepthRequest",
    "Pareto",
    "ParetoPoint",
    "SearchData",
    "Sensitivity",
    "SensitivityPoint",
    "chosen_branches",
    "measure_of",
    "number_of",
    "pareto",
    "samples_of",
    "search_settings",
    "searched",
    "sensitivity",
]
