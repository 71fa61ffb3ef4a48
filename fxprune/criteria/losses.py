"""The loss of a batch, its gradients, and what is said where there are none."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import check_initialised
from fxprune.capture.tensors import Tensors
from fxprune.criteria.weights import is_number
from fxprune.errors import FxpruneError, InputError, PlanError
from fxprune.running.inputs import described

Loss = Callable[[nn.Module, Any], Tensor]
"""A function from the model and one batch to the loss, a scalar: `lambda model, batch: F.cross_entropy(model(batch[0]),
batch[1])`."""

EXAMPLE = "pass a function of both, such as `loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])`"


def check_loss(loss: Any) -> None:
    """Raises `PlanError` for what is no function of a model and a batch, such as a loss function of torch."""
    if not callable(loss):
        raise PlanError(
            f"loss cannot be a {type(loss).__name__}", why="it is called with the model and a batch", do=EXAMPLE
        )
    inner = loss.func if isinstance(loss, functools.partial) else loss
    at = f"loss={getattr(inner, '__name__', type(inner).__name__)}"
    what = "loss is no function of the model and a batch"
    if str(getattr(inner, "__module__", "")).partition(".")[0] == "torch":
        why = "it takes outputs and labels, but it is called with the model and a batch"
        raise PlanError(what, at=at, why=why, do=EXAMPLE)
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError as error:
        why = f"it is called with the model and a batch: {error}"
        raise PlanError(what, at=at, why=why, do=EXAMPLE) from None
    except ValueError:
        return  # a function in C has no signature


@contextlib.contextmanager
def with_gradients(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Evaluation mode, with gradients of all parameters that are real or complex. At the end all is as before.

    Gives the parameters by name. Raises `PlanError` for what is no model, or has no values.
    """
    check_has_values(model)
    parameters = {name: p for name, p in model.named_parameters() if is_number(p)}
    before = [(p, p.requires_grad, p.grad) for p in parameters.values()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in parameters.values():
            parameter.grad = None
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield parameters
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def check_has_values(model: Any) -> None:
    """Raises an error for what cannot be run: no module, a lazy one, one on the meta device."""
    if not isinstance(model, nn.Module):
        raise PlanError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    tensors = Tensors.of(model)
    check_initialised(tensors)
    if tensors.weightless:
        raise PlanError(
            "nothing can be measured without weights",
            why="the model is on the meta device, its parameters have no values",
            do='use importance="random", or load the weights first',
        )


def loss_of(model: nn.Module, batch: Any, loss: Loss, number: int) -> Tensor:
    """The loss of one batch, a finite scalar with gradients. number: of the batch, for messages.

    Raises `InputError` where the loss raises, and where it gives anything else; NaN are named by the first layer.
    """
    at, do = f"batch {number}", "let `loss` return for example `F.cross_entropy(model(x), y)`"
    value = _called(model, batch, loss, at)
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError("the loss is no scalar", at=at, why=f"it is {kind}", do=do)
    if not bool(value.isfinite()):
        why = f"it is {float(value.detach())}; {_first_not_finite(model, batch, loss)}"
        raise InputError("the loss is not finite", at=at, why=why, do="leave out that batch, or repair the weights")
    if not value.requires_grad:
        raise InputError("the loss does not depend on the model's parameters", at=at, do=do)
    return value


def backward(model: nn.Module, batch: Any, loss: Loss, number: int, parameters: dict[str, nn.Parameter]) -> None:
    """Put the gradients of the loss of one batch into `parameters`.

    Raises `InputError` as `loss_of`, and for gradients that are not finite.
    """
    loss_of(model, batch, loss, number).backward()  # type: ignore[no-untyped-call]
    for name, parameter in reversed(parameters.items()):  # NaN spread from the last layers to the first
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            why = f"{int((~parameter.grad.isfinite()).sum())} of its {parameter.numel()} numbers are NaN or infinite"
            do = "look for a square root, a logarithm or a division behind this layer, and leave out that batch"
            raise InputError("a gradient is not finite", at=f'"{name}", batch {number}', why=why, do=do)


def no_gradients() -> InputError:
    """The error for a loss of single samples whose gradients are all zero."""
    return InputError(
        "the loss of one sample has no gradient",
        why="all gradients are zero, as for a loss that compares the samples of a batch with each other",
        do='use a loss that each sample has alone, or importance="taylor", which takes a batch whole',
    )


def _called(model: nn.Module, batch: Any, loss: Loss, at: str) -> Any:
    """The value of the loss. Its exceptions become an `InputError` that says what it was called with."""
    try:
        return loss(model, batch)
    except FxpruneError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        given = f"a batch that is {described(batch)}"
        alone = isinstance(batch, Tensor)
        do = "let the data give pairs of inputs and labels" if alone else "let the data give what `loss` takes"
        raise InputError(
            "the loss raises",
            at=at,
            why=f"{type(error).__name__}: {text}; it was called with the model and {given}",
            do=f"{do}, as in `loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])`",
        ) from error


def _first_not_finite(model: nn.Module, batch: Any, loss: Loss) -> str:
    """A text about the first place where NaN or infinities appear."""
    if any(isinstance(leaf, Tensor) and _has_nan(leaf) for leaf in pytree.tree_leaves(batch)):
        return "the batch holds NaN or infinities"
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if not found and any(isinstance(leaf, Tensor) and _has_nan(leaf) for leaf in pytree.tree_leaves(output)):
            found.append(names[module])

    handles = [module.register_forward_hook(note) for module in names if not isinstance(module, torch.jit.ScriptModule)]
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "the outputs of all layers are finite"
    where = f'"{found[0]}"' if found[0] else "the model itself"
    return f"the first NaN or infinity is in the output of {where}"


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.detach().isfinite().all())
