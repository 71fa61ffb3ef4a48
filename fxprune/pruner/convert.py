"""`BasePruner.convert`: zeros are written into a copy of the model, and `fxprune.transform` removes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._record import Record, change_record, record
from fxprune._transform import transform
from fxprune.capture.inputs import normalize
from fxprune.capture.module_copy import copy_module
from fxprune.errors import ChannelsStayWarning, NothingRemovedWarning, PlanError, VerificationError, counted
from fxprune.ops.layers import output_dim
from fxprune.paths import PATHS
from fxprune.proof.compare import TOLERANCE
from fxprune.proof.deterministic import deterministic
from fxprune.proof.difference import relative_error
from fxprune.pruner.migrate import plain


def converted(
    model: nn.Module, masks: Mapping[str, Tensor], example_inputs: Any, options: Mapping[str, Any]
) -> nn.Module:
    """See `BasePruner.convert`."""
    for taken in ("masks", "plan", "ratio", "bias", "exact"):
        if taken in options:
            raise PlanError(
                f"convert takes no {taken}",
                why="the masks of the pruner say what is removed, exactly",
                do=f"leave {taken} out",
            )
    options = {"norms": "preserve", **options}  # in the model with hooks, norms count the zeros too
    zeros = plain(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingRemovedWarning)  # `_warn` below gives more reasons
        small = transform(zeros, example_inputs, masks="zeros", **options)
    if options.get("verify", True):
        _verify(model, small, [example_inputs, *options.get("also", ())])
    made = record(small)
    stay = _remaining_outputs(zeros, masks, made)
    _warn(made, stay)
    others = tuple(r for r in made.reasons if not r.startswith(tuple(f'"{name}": ' for name in masks)))
    change_record(small, lambda last: replace(last, reasons=(*stay, *others)))
    return small


def _remaining_outputs(zeros: nn.Module, masks: Mapping[str, Tensor], made: Record) -> tuple[str, ...]:
    """Returns a line per layer with pruned outputs that stay as zeros: which, and why."""
    lines = []
    for layer, mask in masks.items():
        module = zeros.get_submodule(layer)
        weight = module.weight
        assert isinstance(weight, Tensor)
        dim = output_dim(module, weight.ndim)
        gone = np.zeros(len(mask), dtype=bool)
        gone[made.removed.get(f"{layer}.weight", {}).get(dim, [])] = True
        left = np.flatnonzero(~mask.cpu().numpy() & ~gone)
        if len(left):
            known = next((r for r in made.reasons if r.startswith(f'"{layer}": ')), "")
            why = known.partition("): ")[2]
            if not why:
                why = f'they are not zero in "{layer}.weight"'
            listed = ", ".join(map(str, left[:6])) + (", ..." if len(left) > 6 else "")
            lines.append(f'"{layer}": {len(left)} pruned outputs stay ({listed}): {why}')
    return tuple(lines)


def _warn(made: Record, reasons: tuple[str, ...]) -> None:
    if not made.removed:
        why = "; ".join(reasons) or "no output is pruned"
        warnings.warn(f"nothing was removed: {why}", NothingRemovedWarning, stacklevel=4)
    elif reasons:
        more = (
            f"; and of {counted(len(reasons) - 4, 'more layer')}, see record(small).reasons" if len(reasons) > 4 else ""
        )
        warnings.warn(
            f"pruned outputs stay as zeros: {'; '.join(reasons[:4])}{more}", ChannelsStayWarning, stacklevel=4
        )


def _verify(model: nn.Module, small: nn.Module, inputs: list[Any]) -> None:
    """Compares the smaller model with the pruned one. Raises `VerificationError` if they differ."""
    error = _error(small, model, inputs, fixed=PATHS[record(small).path].fixes_mode)
    allowed = TOLERANCE if _is_double(small) else 1e-3  # folded constants are rounded to the type of the model
    if not error <= allowed:
        raise VerificationError(
            "the smaller model is another function than the pruned one",
            why=f"the relative error is {error:.2e}, at most {allowed:.0e} is rounding",
            do="report this; until then squash_mask() leaves the same function in the model's original shape",
        )


def _is_double(model: nn.Module) -> bool:
    return all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point())


def _error(ours: nn.Module, theirs: nn.Module, inputs: list[Any], *, fixed: bool = False) -> float:
    """Returns the largest relative error between two models, in float64 and evaluation mode.

    fixed: True keeps the modes of the models, because the mode of an exported graph cannot be changed.
    """
    ours, theirs, worst = _float64_copy(ours, fixed=fixed), _float64_copy(theirs, fixed=fixed), 0.0
    for example_inputs in inputs:
        args, kwargs = pytree.tree_map_only(torch.Tensor, _double, normalize(example_inputs))
        with deterministic():
            worst = max(worst, relative_error(ours(*args, **kwargs), theirs(*args, **kwargs)))
    return worst


def _float64_copy(model: nn.Module, *, fixed: bool) -> nn.Module:
    made = copy_module(model, lambda tensor: _double(tensor).clone())
    for module in made.modules():
        module.training = module.training and fixed
    return made


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
