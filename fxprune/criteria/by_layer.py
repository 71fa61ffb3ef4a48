"""Criteria by layer: scores of the output channels of layers are joined to scores of the channels of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fxprune.analysis.findings import Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_arguments
from fxprune.errors import PlanError, nearest


@checks_arguments("scores")
def scores_by_layer(scores: Mapping[str, Tensor], *, what: str = "scores") -> Callable[[Group], Tensor]:
    """An importance from one score per output channel of each layer.

        score[c] = mean over layers l whose outputs open the group, of mean over outputs i of l in c, of scores[l][i]

    A group has several such layers where they are coupled (a residual sum), and several outputs in one channel where
    channels go in blocks (a head). Layers without scores are left out.

    scores: name of a layer -> [out_channels], higher = keep. what: their name, for messages.

    Raises `PlanError`, when it is called, for a group none of whose layers has scores, and for a wrong length.

    >>> import fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> importance = scores_by_layer({"0": torch.tensor([0.3, 0.1, 0.2, 0.9])})
    >>> fxprune.analyze(net, torch.zeros(1, 2)).plan(ratio=0.5, importance=importance).removed["0.bias"]
    {0: [1, 2]}
    """
    known = {name: torch.as_tensor(values).detach().to("cpu", torch.float64) for name, values in scores.items()}

    def importance(group: Group) -> Tensor:
        found: dict[str, Tensor] = {}
        for layer, member in opening(group):
            if layer in known and layer not in found and len(known[layer]) == member.tensor.shape[member.dim]:
                ones = torch.ones(len(known[layer]), dtype=torch.float64)
                sums = member.per_channel(known[layer], group.size)
                found[layer] = sums / member.per_channel(ones, group.size)
        if not found:
            raise _missing(group, known, what)
        return torch.stack(list(found.values())).mean(0)

    return importance


def opening(group: Group) -> list[tuple[str, Member]]:
    """The members that are outputs of a layer, each with the layer's name; one layer may have several (its bias)."""
    members = (member for member in group.members if group.is_output(member))
    return [(layer, member) for member in members for layer in group.layers_of(member)]


def _missing(group: Group, known: Mapping[str, Tensor], what: str) -> PlanError:
    layers = list(dict.fromkeys(layer for layer, _ in opening(group)))
    short = [layer for layer in layers if layer in known]
    if short:
        sizes = [m.tensor.shape[m.dim] for layer, m in opening(group) if layer == short[0]]
        why = f'"{short[0]}" has {max(sizes)} outputs, and there are {what} of {len(known[short[0]])}'
        return PlanError(
            f"{what} of another width",
            at=f'group "{group.name}"',
            why=why,
            do="measure them on the model that is pruned",
        )
    listed = ", ".join(f'"{layer}"' for layer in layers) or "none"
    return PlanError(
        f"no {what} of a group",
        at=f'group "{group.name}"',
        why=f"its layers are {listed}; {nearest(layers[0] if layers else group.name, known)}",
        do=f"collect them, or leave the group out: ignore={layers[0] if layers else group.name!r}",
    )
