"""A call of the small model as its user will call it, in its own types and with the kernels of torch.

The proof computes in float64, replaces kernels that refuse that, and turns fused attention off. What such a kernel says
to the widths of the small model is seen in a call without all this.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn

from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import same_random_state
from fxprune.errors import VerificationError
from fxprune.proof.failures import raised
from fxprune.proof.pair import Pair
from fxprune.proof.precision import OWN
from fxprune.proof.runs import GraphRun, Modes

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""The layers with a fused fast path, which the proof turns off."""


def raises_as_it_is(pair: Pair, inputs: Inputs, modes: Modes, replaced: Iterable[str]) -> VerificationError | None:
    """The error if the small model raises when it is called as it is, and the original does not.

    replaced: the kernels whose code the proof has replaced. Nothing is called if there are none, and no fused layers.
    """
    names = sorted(replaced) or sorted({type(m).__name__ for m in pair.small.modules() if isinstance(m, FUSED)})
    error = _raised(pair, pair.small, inputs, modes) if names else None
    if error is None or _raised(pair, pair.findings.captured.module, inputs, modes) is not None:
        return None
    return raised("the small model", error, f"as its user calls it; the proof runs {', '.join(names)} by other code")


def _raised(pair: Pair, model: nn.Module, inputs: Inputs, modes: Modes) -> Exception | None:
    """The exception of one call of a model in its own types, None if it runs."""
    captured = pair.findings.captured
    graph = model.graph if isinstance(model, fx.GraphModule) else captured.graph
    run = GraphRun(graph, model, precision=OWN, modes=modes)
    try:
        with torch.no_grad(), same_random_state():
            run.calls(captured.values(inputs))
    except Exception as error:
        return error
    return None
