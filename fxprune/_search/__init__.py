"""Choices that are measured: small models of one analysis are cut, repaired and scored.

The files, in the order of their use: `samples.py` divides the data, `measure.py` says how good a model is,
`candidates.py` cuts and repairs, `steps.py` keeps what is measured in a file, `ratios.py` and `budgets.py` have what
users call, `results.py` and `drawing.py` show what was found.
"""

from fxprune._search.budgets import pareto
from fxprune._search.ratios import sensitivity
from fxprune._search.results import Pareto, ParetoPoint, Sensitivity, SensitivityPoint

__all__ = ["Pareto", "ParetoPoint", "Sensitivity", "SensitivityPoint", "pareto", "sensitivity"]
