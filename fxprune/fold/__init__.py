"""Folding: removed channels that are constants are added exactly to the layers that read them.

The files, in the order in which they are used:

1. `plans.py`: a request becomes a plan, with folded constants where it asks for them. A plan that was made before is
   resolved to the channels of a model.
2. `folding.py`: the loop. It runs the reference, decides, and starts over where channels had to be given up.
3. `reference.py`: runs the reference and lists every place where an operation reads channels. `dependence.py` follows
   which elements depend on the inputs meanwhile; those that do not are constants.
4. `reading.py`: one such place, as data: which slots are constants there, and what can take them up.
5. `decision.py`: chooses the channels that can be removed, and carriers among those that stay.
6. `changes.py`: the numbers to add to a bias, a weight or a map.
7. `zero_weights.py`: the outputs of layers whose weights are zero already, for `masks="zeros"`.
"""

from fxprune.fold.folding import Folding, fold
from fxprune.fold.plans import ResolvedPlan, folds, make_plan, resolve_plan

__all__ = ["Folding", "ResolvedPlan", "fold", "folds", "make_plan", "resolve_plan"]
