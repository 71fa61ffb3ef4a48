"""The real tensors of the smaller model, put where the fake ones stood."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fxprune.capture.held_objects import held_by, redirect
from fxprune.rewrite.recurrent import refresh


def fill(small: nn.Module, tensors: Mapping[int, torch.Tensor]) -> None:
    """Replace the fake tensors of a model, wherever it holds them or refers to them. Changes `small`.

    tensors: id of a fake tensor -> the real one. The containers must be the model's own.
    """
    redirect(small, tensors)
    for module in small.modules():
        refresh(module)


def refer_to_small(small: nn.Module, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let attributes of the small model's parameters refer to its own modules and parameters.

    They are those of the original's parameters. What both hold and can change, such as a dict, stays as it is.

    model: the original. tensors: name -> the new tensor.
    """
    with_attributes = [tensor for tensor in tensors.values() if tensor.__dict__]
    if with_attributes:
        modules = dict(small.named_modules())
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        of = {id(module): modules[path] for path, module in model.named_modules() if path in modules}
        new = {id(tensor): tensors[name] for name, tensor in named if name in tensors}
        redirect(with_attributes, of | new, frozenset(map(id, held_by(model))))
