"""Fisher gates: the squared gradient of the loss by a gate on each channel, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_arguments
from fxprune.criteria.losses import Loss, backward, check_loss, no_gradients, with_gradients
from fxprune.criteria.table import measured
from fxprune.errors import PlanError
from fxprune.running.inputs import each_batch, samples_of
from fxprune.running.processes import Processes


@dataclass(frozen=True, eq=False)
class GateImportance:
    """An importance for `fxprune.transform` and `analysis.plan`, in units of the loss.

    products: parameter, dimension -> the sum of w * dL/dw over all other dimensions, [samples, size], L the loss of one
        sample. For the inputs of a layer this is the gradient by a gate that multiplies them.
    """

    products: Mapping[tuple[str, int], Tensor] = field(repr=False)
    comparable = in_loss = True

    def __call__(self, group: Group) -> Tensor:
        """One score per channel, float64 [group.size]. Raises `PlanError` for a group that no loss depends on."""
        gates = torch.zeros(0)
        for members in _gated(group):
            found = [self._of(member) for member in members if (member.parameter, member.dim) in self.products]
            if found:
                gates = torch.stack(found).sum(0)
                break
        if not gates.numel():
            raise PlanError(
                "no gradient is known for a group",
                at=f'group "{group.name}"',
                why="the loss depends on none of the parameters that read or make its channels, or they are another's",
                do="leave the group out with ignore, or make the importance with this model",
            )
        return gates.square().mean(0) / 2

    def _of(self, member: Member) -> Tensor:
        """The products of each channel, [samples, channels]."""
        values = self.products[member.parameter, member.dim]
        index = torch.from_numpy(member.index)
        return values.new_zeros(len(values), member.size).index_add_(
            1, index, values[:, torch.from_numpy(member.slots)]
        )


def _gated(group: Group) -> list[list[Member]]:
    """The members at which one gate stops the channels, best first: all readers, a norm, the layer that makes them."""
    by_role: dict[str, list[Member]] = {}
    for member in group.members:
        by_role.setdefault(member.role, []).append(member)
    made = group.producer.module
    norms = by_role.get("norm", [])
    return [
        by_role.get("consumer", []),
        [member for member in norms if member.module is norms[0].module],
        [member for member in by_role.get("producer", []) if member.module is made],
    ]


@measured("fisher_gate")
@checks_arguments("progress")
def fisher_gate_importance(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss, progress: bool = True, process_group: Any = None
) -> GateImportance:
    """score[c] = 1/2 * mean over samples of (dL/dg[c])^2, with a gate g[c] = 1 that multiplies channel c.

    The change of the loss where a channel becomes zero, to second order, with the Fisher information for the Hessian:
    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"
    (https://arxiv.org/abs/1801.05787), equation 12; over coupled layers Liu et al. 2021, "Group Fisher Pruning for
    Practical Network Compression" (https://arxiv.org/abs/2108.00708). L is the loss of one sample. The gate stands
    where layers read the channel:

        dL/dg[c] = sum over all layers that read channel c, over the elements w that multiply it, of w * dL/dw

    Runs forward and backward once per sample, since the square of a sum is not a sum of squares. A batch is split along
    the first dimension that all its tensors share; a batch without one counts as one sample. One number is kept per
    sample and slot of each dimension of a parameter.

    Arguments and errors are those of `fxprune.criteria.taylor_importance`.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(1.0), net[1].weight.fill_(1.0)
    >>> batch = torch.tensor([[1.0], [-1.0], [2.0]])  # the gradients by the gate are 1, -1 and 2
    >>> made = fisher_gate_importance(net, [batch], loss=lambda model, x: model(x).sum())
    >>> import fxprune
    >>> made(fxprune.analyze(net, batch).groups[0]).tolist()
    [1.0, 1.0]
    """
    check_loss(loss)
    found: dict[tuple[str, int], dict[int, Tensor]] = {}
    count = 0
    with with_gradients(model) as parameters:
        for number, batch in each_batch(batches, what="Fisher gates", progress=progress):
            for sample in samples_of(batch):
                backward(model, sample, loss, number, parameters)
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        for dim, sums in enumerate(_products(parameter, parameter.grad)):
                            found.setdefault((name, dim), {})[count] = sums
                        parameter.grad = None
                count += 1
    joined: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
    before = 0
    for theirs, samples in Processes(process_group).all((found, count)):
        for key, rows in theirs.items():
            joined.setdefault(key, []).extend((before + number, sums) for number, sums in rows.items())
        before += samples
    if not any(bool(sums.any()) for rows in joined.values() for _, sums in rows):
        raise no_gradients()
    return GateImportance({key: _rows(rows, before) for key, rows in joined.items()})


def _products(weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """The sums of w * dL/dw over all dimensions but one, for each dimension."""
    w, g = weight.detach().cpu(), gradient.cpu()
    product = (w * g.conj()).real.double() if w.is_complex() else w.double() * g.double()
    others = [[other for other in range(product.ndim) if other != dim] for dim in range(product.ndim)]
    return [product.sum(dims) if dims else product for dims in others]


def _rows(rows: Sequence[tuple[int, Tensor]], count: int) -> Tensor:
    """The sums of each sample, [samples, size]; zeros for those that did not reach the parameter."""
    made = rows[0][1].new_zeros(count, len(rows[0][1]))
    for number, sums in rows:
        made[number] = sums
    return made
