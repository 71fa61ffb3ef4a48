"""`expand`: the trained weights of a small model, back in the slots of the large one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from fxprune._follow.parameters import Counterparts, counterparts_of
from fxprune._record import steps_in
from fxprune.arguments import checks_arguments, shown
from fxprune.capture.inputs import check_plain_tensors
from fxprune.capture.process_state import public_call
from fxprune.channels.groups import Bools, Ints
from fxprune.depth.switched_off import switched_off
from fxprune.errors import InputError, PlanError, counted
from fxprune.offloaded import refuse_dispatched
from fxprune.planning.combine import kept_flags

OTHERS = ("keep", "zero")
"""The values of `others`: the slots that were removed stay as they are, or become zero."""


@dataclass(frozen=True)
class Expanded:
    """The report of `expand`. written: the parameters and statistics; left: the buffers that stay as they are."""

    written: tuple[str, ...]
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = f"; left as they are: {', '.join(self.left)}" if self.left else ""
        return f"{counted(len(self.written), 'tensor')} written{left}"


@checks_arguments()
@public_call()
def expand(small: nn.Module, into: nn.Module, *, others: str = "keep") -> Expanded:
    """Writes the weights of a small model back into the slots of the large model that they came from.

    Factors of the plan and those of norms="preserve" are divided out. Running statistics of norms are written too;
    other buffers belong to the code of the large model and stay as they are.

    Args:
        small: what `transform` returned, after training or a repair; only read.
        into: the model that was given to `transform`, or one of its shapes; changed in place.
        others: what becomes of the slots that were removed. "keep": they stay as they are, so that the large model has
            all its channels again and can be trained further. "zero": they become zero, and so do the parameters of
            residual branches that went whole, so that the large model computes what the small one does (where
            `record(small).exact`).

    Returns the names of what was written. Raises `PlanError`, before anything is written, if `small` was made from
    another model, if it has parameters that the large one has no place for (a bias that takes up constants), or if
    `others` is "zero" and a weight is computed from others (weight norm, spectral norm), or a branch that went whole
    has modules that are not known to give zeros where all their parameters are zero.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(3, 4)
    >>> small = fxprune.transform(net, x, ratio=0.5)
    >>> _ = small[0].weight.data.mul_(2)  # stands for training
    >>> print(fxprune.expand(small, net, others="zero"))
    4 tensors written
    >>> torch.allclose(net(x), small(x), atol=1e-6)
    True
    """
    if others not in OTHERS:
        why, do = f"it is {shown(others)}", "pass what becomes of the slots that were removed"
        raise PlanError(f"others is one of {', '.join(OTHERS)}", at=f"expand(others={shown(others)})", why=why, do=do)
    for each in (small, into):
        check_plain_tensors(each.named_parameters())
        refuse_dispatched(each, "expand")
    if steps_in(small) is None and steps_in(into) is not None:
        raise InputError(
            "the two models stand the other way round",
            at="expand",
            why="the second one has the record of a small model, the first has none",
            do="call expand(small, model), the small one first",
        )
    pairs = counterparts_of(into, small)
    _check(pairs)
    if others == "zero":
        _refuse_computed_weights(into)
    writes, left = _prepared(pairs, others)
    with torch.no_grad():
        for write in writes.values():
            write()
    return Expanded(tuple(writes), left)


def _check(pairs: Counterparts) -> None:
    if pairs.added or pairs.plan.maps:
        listed = ", ".join([*pairs.added, *pairs.plan.maps][:4])
        raise PlanError(
            "the large model has no place for all parameters of the small one",
            at=listed,
            why="the plan folds constants into them, and the large model does not have them",
            do='prune with bias="prune", or give these layers a bias before',
        )


def _refuse_computed_weights(model: nn.Module) -> None:
    """Raise `PlanError` for weights that are computed from others: zeros there do not give a weight of zero."""
    for path, module in model.named_modules():
        hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
        name = next((name for name in hooks if name in ("WeightNorm", "SpectralNorm")), "")
        if name or is_parametrized(module):
            raise PlanError(
                "removed slots cannot be set to zero",
                at=f'"{path}"',
                why=f"its weight is computed from others ({name or 'a parametrization'}), and zeros there give no zero",
                do='take others="keep", or remove the parametrization before pruning',
            )


def _prepared(pairs: Counterparts, others: str) -> tuple[dict[str, Callable[[], object]], tuple[str, ...]]:
    """The writes, by the name of a tensor, and the buffers that stay as they are."""
    writes: dict[str, Callable[[], object]] = {}
    for pair in pairs.by_id.values():
        if pair.new is not None:
            writes[pair.name] = _write(
                pair.old, pair.without_factor(pair.new.detach().to(pair.old)), dict(pair.kept), others
            )
    if others == "zero":
        off = switched_off(pairs.model, pairs.plan.dropped)
        writes |= {name: parameter.zero_ for name, parameter in off.items()}
    theirs, left = dict(pairs.small.named_buffers(remove_duplicate=False)), []
    for path, module in pairs.model.named_modules():
        for own, buffer in module.named_buffers(recurse=False):
            name = f"{path}.{own}" if path else own
            if isinstance(module, _NormBase) and name in theirs:
                kept = kept_flags(pairs.plan, name, buffer.shape)
                writes[name] = _write(buffer, theirs[name].detach().to(buffer), kept, others)
            else:
                left.append(name)
    return writes, tuple(left)


def _write(old: torch.Tensor, values: torch.Tensor, kept: dict[int, Bools], others: str) -> Callable[[], None]:
    def write() -> None:
        if others == "zero" and kept:
            old.zero_()
        _copy_into(old, values, [(dim, np.flatnonzero(flags)) for dim, flags in sorted(kept.items())])

    return write


def _copy_into(old: torch.Tensor, values: torch.Tensor, dims: list[tuple[int, Ints]]) -> None:
    """Copy values into the slots of these dimensions: one dimension at a time."""
    if not dims:
        old.copy_(values)
        return
    (dim, slots), *rest = dims
    index = torch.from_numpy(slots).to(old.device)
    if rest:
        part = old.index_select(dim, index)
        _copy_into(part, values, rest)
        values = part
    old.index_copy_(dim, index, values)
