"""ThiNet: channels chosen by greedy reconstruction, and the weights of the next layer scaled by least squares."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune._analyze import Analysis, analyze
from fxprune._transform import transform
from fxprune.arguments import checks_arguments
from fxprune.criteria.contributions import CONVOLUTIONS, Contributions, Sampled, sample_contributions
from fxprune.criteria.thinet import ThiNetImportance
from fxprune.errors import PlanError
from fxprune.planning.channels import removal_of
from fxprune.planning.plan import Plan

RCOND = 1e-6
"""Singular values below this share of the largest count as zero: they are noise of float32 samples."""


@checks_arguments("exact")
def thinet(
    model: nn.Module,
    example_inputs: Any,
    loader: Iterable[Any],
    *,
    ratio: float | Mapping[str, float],
    samples: int = 10,
    seed: int = 0,
    rescale: bool = True,
    ignore: Any = (),
    round_to: int = 1,
    exact: bool = False,
    path: str | None = None,
    prefer: str | None = None,
) -> nn.Module:
    """Returns a smaller model by ThiNet, which keeps the outputs of the next layers close to the original ones.

    Luo, Wu and Lin 2017, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression"
    (https://arxiv.org/abs/1707.06342): the outputs of the next layer are sampled, the channels whose removal changes
    them least are removed (`ThiNetImportance`), and the weights of the next layer are scaled by least squares
    (`rescale_consumers`). The paper prunes one layer, fine-tunes, and continues with the next. For that, call this
    function in a loop over `analysis.groups` with `ratio={group.name: share}`. With one ratio for all groups, the
    samples for every layer come from the original model.

    The original is only read; the loader is iterated once, in evaluation mode. `record(small)` is the record of
    `transform`. Since the weights have changed, `fxprune.verify` compares with the rescaled model, not the original.

    Args:
        model, example_inputs, path, prefer: see `fxprune.transform`.
        loader, samples, seed: see `fxprune.criteria.sample_contributions`.
        ratio, ignore, round_to, exact: see `fxprune.planning.choose.choose`. Groups that no convolution or linear
            layer reads cannot be ranked; `ignore` them.
        rescale: False skips the scaling by least squares.

    Raises the errors of these functions, and `PlanError` if there are too few samples for the least squares.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    >>> batches = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    >>> small = thinet(net, batches[0], batches, ratio=0.5)
    >>> small.get_submodule("0")
    Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    analysis = analyze(model, example_inputs, path=path)
    found = sample_contributions(model, loader, samples=samples, seed=seed)
    plan = analysis.plan(
        ratio=ratio,  # type: ignore[arg-type]
        importance=ThiNetImportance(found),
        ignore=ignore,
        round_to=round_to,
        exact=exact,
    )
    source = rescale_consumers(analysis, plan, found) if rescale else model
    return transform(source, example_inputs, plan=plan, path=path, prefer=prefer)


@checks_arguments("analysis", "contributions")
def rescale_consumers(analysis: Analysis, plan: Plan, contributions: Contributions) -> nn.Module:
    """Returns a copy of the model with scaled weights, which compensate for the input channels that a plan removes.

        w* = argmin over w of sum over samples m of (sum over all c of x[m, c] - sum over kept c of w[c] * x[m, c])^2

    and the weight column of channel c is multiplied by w*[c] (Luo et al. 2017, "ThiNet"). x[m, c] is the part of sample
    m of an output that input channel c adds. All slots of a channel have the same factor, such as the H * W columns of
    a flattened channel. If several w are optimal, the one nearest to 1 is taken. Samples of outputs that the plan
    removes are not used.

    The copy has the original's shapes: pass it to `transform` with the same plan. Layers that lose no input channel are
    not changed.

    Args:
        analysis: the analysis of the model.
        plan: the plan that will be carried out.
        contributions: samples from the same model, see `fxprune.criteria.sample_contributions`.

    Raises `PlanError` if the samples are from another model, if a layer has fewer samples than factors, or if its
    weight is also used by another module.

    >>> import torch, fxprune
    >>> from fxprune.criteria import sample_contributions
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[2.0], [3.0]]))
    ...     _ = net[1].weight.copy_(torch.tensor([[1.0, 1.0]]))
    >>> x = torch.randn(64, 1)
    >>> analysis = fxprune.analyze(net, x)
    >>> plan = analysis.plan(masks={"0": torch.tensor([False, True])})  # 2x + 3x, without 2x
    >>> scaled = rescale_consumers(analysis, plan, sample_contributions(net, [x]))
    >>> round(scaled[1].weight[0, 1].item(), 4)  # 5x / 3x
    1.6667
    """
    removal_of(analysis, plan)
    if contributions.model is not analysis.model:
        raise PlanError(
            "the contributions are those of another model",
            why="they were sampled from a module that the analysis does not speak of",
            do="sample them from the model that was analysed",
        )
    factors: dict[str, torch.Tensor] = {}
    for name, dims in plan.removed.items():
        sampled = contributions.of(analysis.tensors[name]) if name in analysis.tensors and dims.get(1) else None
        if sampled is not None:
            _check_used_alone(analysis, name)
            factors[name] = _factors(analysis, name, dims, sampled)
    made = copy.deepcopy(analysis.model)
    with torch.no_grad():
        for name, scale in factors.items():
            weight = made.get_parameter(name)
            weight.mul_(scale.to(weight).view(1, -1, *[1] * (weight.ndim - 2)))
    return made


def _factors(analysis: Analysis, name: str, dims: dict[int, list[int]], sampled: Sampled) -> torch.Tensor:
    """Returns one factor per slot of the input dimension, 1 for removed slots."""
    parts, outputs = sampled.parts.to("cpu", torch.float64), sampled.outputs.cpu()
    stay = torch.ones(analysis.tensors[name].shape[0], dtype=torch.bool)
    stay[dims.get(0, [])] = False
    parts = parts[stay[outputs]]
    label = torch.from_numpy(_factor_numbers(analysis, name))
    gone = torch.zeros(int(label.max()) + 1, dtype=torch.bool)
    gone[label[dims[1]]] = True
    columns = parts.new_zeros(len(parts), len(gone)).index_add_(1, label, parts)
    count = int((~gone).count_nonzero())
    if len(parts) < count:
        raise PlanError(
            "too few samples for the least squares of ThiNet",
            at=f'"{name}"',
            why=f"{len(parts)} samples of its outputs, {count} factors",
            do="give more batches or more samples per input, ten times the factors or more; or leave the scaling out",
        )
    lost = columns[:, gone].sum(1, keepdim=True)  # solved for w - 1: the smallest solution then leaves w nearest to 1
    solution = torch.linalg.lstsq(columns[:, ~gone], lost, rcond=RCOND, driver="gelsd").solution
    scale = torch.ones(len(gone), dtype=torch.float64)
    scale[~gone] += solution.squeeze(1)
    return scale[label]


def _factor_numbers(analysis: Analysis, name: str) -> Any:
    """Returns the number of the factor of each input slot: one per channel, or per slot of no channel or of a grid."""
    vector = analysis.axis_vector(name, 1)
    columns = analysis.solution.channels_of(vector)
    own = np.arange(vector.size) + analysis.solution.channels
    channel = columns[0] if len(columns) == 1 else np.full(vector.size, -1)
    return np.unique(np.where(channel >= 0, channel, own), return_inverse=True)[1].reshape(-1)


def _check_used_alone(analysis: Analysis, name: str) -> None:
    """Raises `PlanError` for a weight that a module other than the sampled layers uses too."""
    tensor = analysis.tensors[name]
    owners = [m for m in analysis.model.modules() if any(p is tensor for p in m._parameters.values())]
    others = [type(m).__name__ for m in owners if not isinstance(m, (nn.Linear, *CONVOLUTIONS))]
    if others:
        raise PlanError(
            "a weight cannot be rescaled for one of its uses alone",
            at=f'"{name}"',
            why=f"it is tied to that of {', '.join(others)}",
            do="leave the scaling out (rescale=False), or ignore the group",
        )
