"""Recurrent layers: their sizes counted anew, and the list of weights that they keep beside their parameters.

A hidden unit j is row j of every gate (rows j, H+j, 2H+j, ... of `weight_ih`, `weight_hh` and the biases), a column of
`weight_hh` or of the projection, and a column of whatever reads the output
(https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html). One hidden size, and one size of the projection,
serves all layers and directions.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.rewrite.modules import Use, recounts

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""How many blocks of H rows a weight has, by `RNNBase.mode`."""


@recounts(nn.RNNBase)
def _recurrent(module: Any, use: Use) -> dict[str, Any]:
    """Sizes as the weights of the first layer have them; those of all others must agree.

    weight_ih: (gates * H, inputs); weight_hh: (gates * H, R); weight_hr, of a projection: (R, H), else R = H.
    """
    gates, directions = GATES[module.mode], 2 if module.bidirectional else 1
    hidden = module.weight_hh_l0.shape[0] // gates
    inputs = module.weight_ih_l0.shape[1]
    projected = module.weight_hr_l0.shape[0] if module.proj_size else 0
    out = projected or hidden
    if projected >= hidden:
        why = f"a projection to {projected} is not narrower than the {hidden} hidden units it would have"
        raise use.impossible(why, {"weight_hr_l0": 1})
    for layer in range(module.num_layers):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][:directions]:
            want = {
                "weight_ih": (gates * hidden, directions * out if layer else inputs),
                "weight_hh": (gates * hidden, out),
                "weight_hr": (projected, hidden),
            }
            for name, shape in want.items():
                weight = getattr(module, name + suffix, None)
                if weight is not None and tuple(weight.shape) != shape:
                    why = f"{name + suffix} would have shape {tuple(weight.shape)}, the layer needs {shape}"
                    raise use.impossible(why, {name + suffix: 0, "weight_hh_l0": 1, "weight_hr_l0": 1})
    return {"input_size": inputs, "hidden_size": hidden, "proj_size": projected}


@recounts(nn.RNNCellBase)
def _cell(module: Any, use: Use) -> dict[str, Any]:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def refresh(module: nn.Module) -> None:
    """Make a recurrent layer's list of weights the list of its parameters, after these were replaced.

    It would notice in its next forward; until then it would keep the old ones in memory. On a GPU this also puts them
    into one block of memory, as cuDNN wants them.
    """
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
