"""Hooks of parameters in a model that is loaded: those of the model that it is loaded into."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from fxprune.capture.references import names_in
from fxprune.capture.tensors import Tensors
from fxprune.errors import level_of_user
from fxprune.planning.combine import kept_flags
from fxprune.planning.plan import Plan
from fxprune.rewrite.hook_readings import too_wide
from fxprune.rewrite.tensor_hooks import HOOK_TABLES, carry_over, hooks_of, left_out
from fxprune.rewrite.tensors import cut


def carry_hooks(into: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Registers the hooks of the parameters of `into` on those of the small model, as `transform` does it.

    Masks of gradients are cut. Warns of hooks that cannot work on smaller parameters, which are left out.
    """
    original = Tensors.of(into)
    if not any(hooks_of(original)):
        return
    state, known = Tensors.of(small), names_in(into, original)
    for tensor in state.values():
        for table in HOOK_TABLES if tensor.is_leaf else ():
            setattr(tensor, table, None)  # those that `transform` has carried over already

    def kept(name: str, values: torch.Tensor) -> torch.Tensor:
        flags = kept_flags(plan, name, original[name].shape)
        return cut(values.detach(), {dim: own for dim, own in flags.items() if values.shape[dim] > 1})

    carry_over(original, into, known, state, small, kept)
    lost = left_out(original, into, known, state, small)
    if lost:
        listed = ", ".join(list(dict.fromkeys(f'"{name}"' for name, _ in lost))[:4])
        text = f"hooks are not on the new parameters of {listed}: register them again. {lost[0][1]}"
        warnings.warn(text, UserWarning, level_of_user())
    for sentence in too_wide(original, into, small, state, [text for _, text in lost])[:1]:
        do = "give it the kept part (record(small).removed has the slots that went)"
        warnings.warn(f"{sentence}: {do}", UserWarning, level_of_user())
