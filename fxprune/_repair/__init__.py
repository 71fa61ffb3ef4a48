"""Repairing a small model without training: the layers that read a pruned channel are refitted.

`repair` makes each layer's outputs as near as possible to those of the original, by a least-squares regression on what
the layer reads in the small model. It needs some inputs and no labels. `recalibrate` measures the
statistics of batch norms again.

The files, in the order of a repair: `batches.py` splits the data, `survey.py` says what a forward does with each
parameter, `pairs.py` which layers of the two models belong together, `lanes.py` runs both models side by side,
`layer.py` refits one layer from its `moments.py`, `outputs.py` judges the result, `outputs_fit.py` moves all weights
together, and `functions.py` has what users call. `fxprune/running/` reads the data, sees the products of a forward, and
adds over several processes.
"""

from fxprune._repair.functions import recalibrate, repair, warn_of_outputs
from fxprune._repair.layer_by_layer import repaired
from fxprune._repair.settings import MODES, RepairSettings

__all__ = ["MODES", "RepairSettings", "recalibrate", "repair", "repaired", "warn_of_outputs"]
