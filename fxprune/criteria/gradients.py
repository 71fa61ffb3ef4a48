"""Taylor and Fisher: the change of the loss without a channel, from gradients on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.arguments import checks_arguments
from fxprune.criteria.losses import Loss, backward, check_loss, no_gradients, with_gradients
from fxprune.criteria.table import measured
from fxprune.errors import PlanError
from fxprune.running.inputs import each_batch, sample_count, samples_of
from fxprune.running.processes import Processes


@dataclass(frozen=True, eq=False)
class GradientImportance:
    """An importance for `fxprune.transform` and `analysis.plan`, in units of the loss.

    terms: for each parameter, by name, one number per element. The score of a channel is the sum of |terms| over the
        output dimensions that are removed with it: the weights of a reader would count the same change a second time.
    """

    terms: Mapping[str, Tensor] = field(repr=False)
    comparable = in_loss = True

    def __call__(self, group: Group) -> Tensor:
        """One score per channel, float64 [group.size]. Raises `PlanError` for a group that no loss depends on."""
        scores = torch.zeros(group.size, dtype=torch.float64)
        found = False
        for member in group.members:
            values = self.terms.get(member.parameter)
            if values is None or values.shape != member.tensor.shape or not group.is_output(member):
                continue
            found = True
            scores += member.sum_per_channel(values.abs())
        if not found:
            raise PlanError(
                "no gradient is known for a group",
                at=f'group "{group.name}"',
                why="the loss depends on none of the parameters that make its channels, or they are another model's",
                do="leave the group out with ignore, or make the importance with this model",
            )
        return scores


@measured("taylor")
@checks_arguments("progress")
def taylor_importance(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss, progress: bool = True, process_group: Any = None
) -> GradientImportance:
    """The change of the loss to first order, element by element: terms = |w * dL/dw|, L the mean over the samples.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning" (https://arxiv.org/abs/1906.10771), the
    first-order terms by absolute value: summed with their signs they cancel each other.

    Runs forward and backward once per batch, in evaluation mode. A batch counts by the number of its samples, so that
    batches of other sizes give the same terms. The model is as before afterwards, with its gradients.

    Args:
        model: the one that will be pruned.
        batches: what `loss` takes, such as pairs of inputs and labels.
        loss: a function from the model and a batch to a scalar, the mean over the samples of the batch.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.
        process_group: a group of `torch.distributed`, whose processes have the same model and some of the batches each.
            All of them get the importance that one process gets from all batches.

    Raises `InputError` for no batches, a loss that raises, is no scalar or not finite, and for gradients that are not.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> importance = taylor_importance(net, [torch.randn(8, 2)], loss=lambda model, x: model(x).square().mean())
    >>> import fxprune
    >>> len(fxprune.analyze(net, torch.randn(1, 2)).plan(ratio=0.5, importance=importance).removed["0.bias"][0])
    2
    """
    found = _means(model, batches, loss, lambda gradient: gradient, _whole, progress, Processes(process_group))
    return GradientImportance({name: (weight * mean).abs() for name, (weight, mean) in found.items()})


@measured("fisher")
@checks_arguments("progress")
def fisher_importance(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss, progress: bool = True, process_group: Any = None
) -> GradientImportance:
    """The diagonal of the Fisher information: terms = |w|^2 * mean over samples of |dL/dw|^2 / 2.

    The second-order change of the loss where w becomes zero, with the Fisher information for the Hessian: LeCun et al.
    1989, "Optimal Brain Damage"; Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"
    (https://arxiv.org/abs/1801.05787). L is the loss of one sample.

    Runs forward and backward once per sample, since the square of a sum is not a sum of squares. A batch is split along
    the first dimension that all its tensors share. Arguments and errors are those of `taylor_importance`; a loss that
    compares the samples of a batch has no gradient for one sample alone, and is refused.

    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(3.0)
    >>> data = [torch.tensor([[1.0], [2.0]])]  # gradients 1 and 2
    >>> fisher_importance(net, data, loss=lambda model, x: model(x).sum()).terms["0.weight"]
    tensor([[11.2500]], dtype=torch.float64)
    """
    found = _means(
        model, batches, loss, lambda gradient: gradient.abs().square(), _each, progress, Processes(process_group)
    )
    if not any(mean.any() for _, mean in found.values()):
        raise no_gradients()
    return GradientImportance({name: weight.abs().square() * mean / 2 for name, (weight, mean) in found.items()})


def _double(tensor: Tensor) -> Tensor:
    """A tensor on the CPU in float64; in complex128 if it is complex."""
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _whole(batch: Any) -> list[tuple[Any, int]]:
    """A batch with the number of its samples."""
    return [(batch, sample_count(batch))]


def _each(batch: Any) -> list[tuple[Any, int]]:
    """The samples of a batch."""
    return [(sample, 1) for sample in samples_of(batch)]


def _means(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    of: Callable[[Tensor], Tensor],
    parts: Callable[[Any], list[tuple[Any, int]]],
    progress: bool,
    processes: Processes,
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each parameter that has gradients its values, and the mean of a function of them over the samples.

    parts: the parts of a batch that the loss is taken of, each with the number of its samples.
    """
    check_loss(loss)
    total: dict[str, Tensor] = {}
    count = 0
    with with_gradients(model) as parameters:
        for number, batch in each_batch(batches, what="gradients", progress=progress):
            for part, size in parts(batch):
                backward(model, part, loss, number, parameters)
                count += size
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        value = size * of(_double(parameter.grad))
                        total[name] = total[name] + value if name in total else value
                        parameter.grad = None
        total, count = processes.sums(total, count)
        return {name: (_double(parameters[name].detach()), value / count) for name, value in total.items()}
