"""The fit of all weights together to the outputs of the original, by gradient steps without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxprune._repair.batches import DataPart
from fxprune._repair.lanes import Model
from fxprune._repair.noise import with_noise
from fxprune._repair.outputs import sample_errors
from fxprune.errors import InputError
from fxprune.running.processes import Processes

RATE = 0.01
"""The first step, as a share of the median over the matrices of the root mean square of their numbers."""
CHECKS = 10
"""The number of times that the error on the held-out samples is measured."""


class OutputsFit:
    """Adam's method (Kingma and Ba 2015) on the relative squared error of the outputs, with a rate that falls to 0.

    Numbers of lower precision than float32 are followed in float32.

    wanted: the outputs of the original for each part. With noise, which is added to the inputs in each step, there are
    none: the original runs on the same noisy inputs.
    """

    def __init__(
        self,
        small: Model,
        original: Model,
        parts: Sequence[DataPart],
        wanted: Sequence[Any],
        processes: Processes,
        noise: float = 0.0,
    ) -> None:
        self.small, self.original, self.parts, self.wanted = small, original, parts, wanted
        self.processes, self.noise = processes, noise
        self._draws = torch.Generator().manual_seed(processes.rank)
        named = [(n, p) for n, p in small.parameters.tensors.items() if isinstance(p, torch.nn.Parameter)]
        self.names = [name for name, p in named if p.is_floating_point()]
        self.weights = [p for _, p in named if p.is_floating_point()]
        self._exact = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self.weights]
        sizes = sorted(float(p.double().square().mean().sqrt()) for p in self._exact if p.ndim > 1 and p.numel())
        self._rate = RATE * sizes[len(sizes) // 2] if sizes else 0.0
        self._optimizer = torch.optim.Adam(self._exact, lr=self._rate) if sizes else None

    def fit(self, steps: int, error: Callable[[], float], advance: Callable[[], Any]) -> tuple[float, str]:
        """Take steps; the weights of the least error stay. Returns it, and why no step could be taken, "" if some were.

        error: the error on the held-out samples. advance: called after each step.
        """
        best, kept = error(), [p.detach().clone() for p in self.weights]
        before = best
        flags = [p.requires_grad for p in self.weights]
        every = max(steps // CHECKS, 1)
        order = torch.Generator().manual_seed(0)
        rows: list[int] = []
        try:
            for p in self.weights:
                p.requires_grad_(True)
            for step in range(steps):
                rows = rows or torch.randperm(len(self.parts), generator=order).tolist()
                why = next(filter(None, self.processes.all(self._step(rows.pop() if rows else None, step / steps))), "")
                if why:
                    return best, why
                advance()
                if (step + 1) % every == 0 or step + 1 == steps:
                    now = _finite(error)
                    if now < best:
                        best, kept = now, [p.detach().clone() for p in self.weights]
        finally:
            for p, flag, values in zip(self.weights, flags, kept, strict=True):
                p.requires_grad_(flag)
                p.grad = None
                with torch.no_grad():
                    p.copy_(values)
        return best, "" if best < before else "no step made the outputs better on the held-out samples"

    def _step(self, number: int | None, passed: float) -> str:
        """One step on one part. passed: the share of the steps that is over. Returns why it was not possible."""
        found: Sequence[Tensor | None] = [None] * len(self.weights)  # of a process without a part
        if self._optimizer is None:
            return "the model has no matrices"
        if number is not None:
            gradients = self._gradients(number)
            if gradients is None:
                return "the outputs have no gradient by the weights"
            found = gradients
        processes = len(self.processes.all(None))
        for p, exact, gradient in zip(self.weights, self._exact, found, strict=True):
            exact.grad = (torch.zeros_like(p) if gradient is None else gradient).to(exact.dtype)
            self.processes.add([exact.grad])
            exact.grad.div_(processes).nan_to_num_(0.0, 0.0, 0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (1 + math.cos(math.pi * passed)) / 2
        self._optimizer.step()
        with torch.no_grad():
            for p, exact in zip(self.weights, self._exact, strict=True):
                p.copy_(exact)
        return ""

    def _gradients(self, number: int) -> Sequence[Tensor | None] | None:
        """The gradients of the mean error on a part, None if there are none."""
        part = self.parts[number]
        if self.noise:
            part = replace(part, inputs=with_noise(part.inputs, self.noise, self._draws))
        wanted = self.original.run(part) if self.noise else self.wanted[number]
        with torch.enable_grad():
            errors = sample_errors([(self.small.run_with_gradients(part), wanted)])
            loss = sum(one.sum() for one in errors) / max(sum(one.numel() for one in errors), 1)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                return None
            return torch.autograd.grad(loss, self.weights, allow_unused=True)


def _finite(error: Callable[[], float]) -> float:
    """The error, infinity where an output is not finite."""
    try:
        return error()
    except InputError:
        return math.inf
