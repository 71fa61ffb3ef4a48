"""Predictions of a small model beside those of its original: divergence, agreement, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture.inputs import Inputs, bound
from fxprune.capture.process_state import same_random_state
from fxprune.capture.values import tensors_in
from fxprune.errors import InputError
from fxprune.running.inputs import called, inputs_of

TOPS = (1, 5, 10)
"""The numbers of best classes whose agreement is measured."""


@dataclass(frozen=True)
class Quality:
    """The predictions of a small model beside those of its original.

    predictions: how many were compared. divergence: the mean of KL(original || small), in nats. agreement: k -> the
    share of the k best classes of the original that are among the k best of the small model. perplexity: that of the
    small model over that of the original, on the next tokens; None where the inputs are no tokens.
    """

    predictions: int
    divergence: float
    agreement: dict[int, float] = field(hash=False)
    perplexity: float | None = None


@dataclass
class _Sums:
    predictions: int = 0
    divergence: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    agreement: dict[int, float] = field(default_factory=dict)


def quality_of(model: nn.Module, small: nn.Module, batches: Iterable[Any]) -> Quality:
    """Compares the predictions of two models on batches, in evaluation mode and without gradients.

    batches: what one call of the models takes each. Raises `InputError` for models whose results have no classes.
    """
    sums, modes = _Sums(), {module: module.training for one in (model, small) for module in one.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), same_random_state():
            for number, inputs in enumerate(inputs_of(model, batches, None, option="")):
                made = [_logits(called(one, inputs, number), number) for one in (model, small)]
                if made[0].shape != made[1].shape:
                    why = f"{list(made[0].shape)} and {list(made[1].shape)}"
                    raise InputError(
                        "the two models have other classes",
                        at=f"quality, batch {number}",
                        why=why,
                        do="compare a small model with the original that it was made from",
                    )
                _add(sums, made[0], made[1], *_tokens(model, inputs, made[0]))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not sums.predictions:
        raise InputError(
            "there is nothing to compare",
            at="quality",
            why="all tokens are padding",
            do="pass batches with tokens that count",
        )
    agreement = {k: shared / sums.predictions for k, shared in sums.agreement.items()}
    before, after = sums.losses
    perplexity = math.exp((after - before) / sums.tokens) if sums.tokens else None
    return Quality(sums.predictions, sums.divergence / sums.predictions, agreement, perplexity)


def _logits(result: Any, number: int) -> Tensor:
    """The logits in a result: the entry of this name, else the first tensor of fractions with classes."""
    found = getattr(result, "logits", None)
    named = [found] if isinstance(found, Tensor) else tensors_in(result)
    for tensor in named:
        if tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] > 1:
            return tensor.double()
    why = "it holds no floating tensor with a dimension of classes"
    raise InputError(
        "the result has no logits",
        at=f"quality, batch {number}",
        why=why,
        do="pass a model whose result is a tensor of logits, or has them as `.logits`",
    )


def _tokens(model: nn.Module, inputs: Inputs, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The tokens that were given, and which of them count; None where the logits are not of tokens."""
    given = bound(model, inputs).arguments
    ids, mask = given.get("input_ids", next(iter(given.values()), None)), given.get("attention_mask")
    fits = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.shape == logits.shape[:-1]
    if not fits or (isinstance(ids, Tensor) and int(ids.max()) >= logits.shape[-1]):
        return None, None
    return ids, mask if isinstance(mask, Tensor) and mask.shape == logits.shape[:-1] else None


def _add(sums: _Sums, before: Tensor, after: Tensor, ids: Tensor | None, mask: Tensor | None) -> None:
    """Adds the predictions of one batch. ids: the tokens, [samples, length]. mask: those that count; None for all."""
    counts = torch.ones(before.shape[:-1], dtype=torch.bool, device=before.device) if mask is None else mask.bool()
    old, new = before.log_softmax(-1), after.to(before.device).log_softmax(-1)
    if ids is not None and ids.ndim == 2 and ids.shape[1] > 1:
        both = counts[:, :-1] & counts[:, 1:]
        for place, logs in enumerate((old, new)):
            sums.losses[place] += float(F.nll_loss(logs[:, :-1][both], ids[:, 1:][both], reduction="sum"))
        sums.tokens += int(both.sum())
    old, new = old[counts], new[counts]
    sums.predictions += len(old)
    shares = old.exp()
    sums.divergence += float(torch.where(shares > 0, shares * (old - new), 0.0).sum())
    for k in TOPS:
        if k < old.shape[-1]:
            best = [logs.topk(k, dim=-1).indices for logs in (old, new)]
            shared = (best[0][:, :, None] == best[1][:, None, :]).any(-1).double().mean(-1)
            sums.agreement[k] = sums.agreement.get(k, 0.0) + float(shared.sum())
