"""Steps of an optimizer that leave alone what has no gradient: weights behind activations that are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_names
from fxprune.errors import PlanError

_FROM_ZERO = frozenset(
    """
    momentum_buffer exp_avg exp_avg_sq max_exp_avg_sq exp_inf square_avg acc_delta grad_avg prev
    """.split()
)
"""The states of optimizers of torch that start at zero; others start as the optimizer makes them."""


@checks_names
def freeze_zero_gradients(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter] | None = None
) -> Callable[[], None]:
    """Makes each step of an optimizer leave elements as they are whose gradient is exactly 0 in this step, in place.

    A weight has a gradient of 0 if the activations behind or before it are zero in the whole batch, or if a mask sets
    it to 0. Momentum, weight decay and the moments of Adam would move it all the same. Here the element and its state
    (momentum, moments) stay bit for bit, as `torch.optim.SparseAdam` does it; numbers per parameter, such as the count
    of steps, go on. Which elements these are is looked up in every step, after gradients have been clipped or unscaled.

    A step holds copies of the parameters that have a zero gradient somewhere, and of their states.

    Args:
        optimizer: any optimizer that works element by element. `torch.optim.LBFGS` is refused.
        parameters: those that it concerns; all of the optimizer by default.

    Returns a function that ends this. Raises `PlanError` for a parameter that the optimizer does not update.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    >>> stop = freeze_zero_gradients(optimizer)
    >>> weight.grad = torch.tensor([0.0, 1.0])
    >>> optimizer.step()
    >>> weight[0].item(), weight[1].item() < 2
    (1.0, True)
    """
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        kind = type(optimizer).__name__
        raise PlanError(
            "not an optimizer that works element by element", at="optimizer", why=f"it is {kind}", do="pass SGD or Adam"
        )
    chosen = None if parameters is None else {id(p): p for p in parameters}
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if chosen is not None and (strange := [p for key, p in chosen.items() if key not in updated]):
        raise PlanError(
            f"the optimizer does not update {len(strange)} of the parameters",
            at=type(optimizer).__name__,
            why=f"one has the shape {tuple(strange[0].shape)}",
            do="pass the one that does",
        )
    held: list[tuple[nn.Parameter, Tensor, Tensor, dict[str, Tensor]]] = []

    def store(*_: Any) -> None:
        held.clear()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None or grad.is_sparse or (chosen is not None and id(parameter) not in chosen):
                    continue
                zero = grad.detach() == 0
                if bool(zero.any()):
                    held.append((parameter, zero, parameter.detach().clone(), _states(optimizer, parameter)))

    @torch.no_grad()
    def restore(*_: Any) -> None:
        for parameter, zero, values, states in held:
            parameter.copy_(torch.where(zero, values, parameter))
            for name, state in optimizer.state.get(parameter, {}).items():
                if not isinstance(state, Tensor) or state.shape != parameter.shape:
                    continue
                if name in states:
                    state.copy_(torch.where(zero, states[name], state))
                elif name in _FROM_ZERO:  # made in this step
                    state.masked_fill_(zero, 0)
        held.clear()

    handles = [optimizer.register_step_pre_hook(store), optimizer.register_step_post_hook(restore)]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def _states(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Returns copies of the states of a parameter that have its shape."""
    found = optimizer.state.get(parameter, {})
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return {name: value.clone() for name, value in tensors.items() if value.shape == parameter.shape}
