"""`follow`: the state of training goes on with the small model."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune._follow.result import Followed
from fxprune._follow.same_object import at_once
from fxprune._follow.targets import prepared
from fxprune.arguments import checks_arguments
from fxprune.capture.process_state import public_call


@checks_arguments("model", "small")
@public_call()
def follow(target: Any, model: nn.Module, small: nn.Module) -> Followed | tuple[Followed, ...]:
    """Lets an optimizer, an averaged model or a penalty go on with the small model that `transform` made.

    The optimizer stays the same object, so schedulers, hooks and trainers keep it. Its groups keep their settings and
    hold the parameters of the small model. State of a parameter's shape (momentum, Adam's moments) loses the slots that
    the parameter has lost; scalars stay as they are. Parameters that the small model does not have leave their group.
    Gradients of the model are cut, and given to the small model.

    The next steps are then those of the masked original, for optimizers that update every element by itself (SGD, Adam,
    AdamW, RMSprop, Adagrad and others of torch). The notes of the result say where they are not.

    Args:
        target: what follows, changed in place: an optimizer; a module whose attribute `module` is a copy of the model
            with averaged weights (`torch.optim.swa_utils.AveragedModel`); a penalty of `fxprune.regularizers`; a
            gradient scaler, which has nothing to change; or a list of these. Penalties that an optimizer trains with
            need not be named.
        model: the model that was given to `transform`; only read.
        small: what `transform` returned; its gradients are set.

    Returns what became of the parameters; a tuple for a list.

    Raises `InputError` for a target that cannot follow, such as L-BFGS, whose state is one vector for all parameters;
    `PlanError` if `small` was made from another model. Nothing is changed then.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> x = torch.randn(3, 4)
    >>> net(x).sum().backward()
    >>> optimizer.step()
    >>> small = fxprune.transform(net, x, ratio=0.5)
    >>> print(fxprune.follow(optimizer, net, small))
    Adam: 4 parameters moved
    >>> optimizer.state[small.get_parameter("0.weight")]["exp_avg"].shape
    torch.Size([4, 4])
    """
    several = isinstance(target, list | tuple)
    changes = prepared(list(target) if several else [target], model, small)
    with at_once():
        for change in changes:
            change.make()
    made = tuple(change.result for change in changes[: len(target) if several else 1])
    return made if several else made[0]
