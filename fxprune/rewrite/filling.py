"""The real tensors of the smaller model, put where the fake ones stood."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fxprune.capture.given_attributes import give_attributes
from fxprune.capture.held_objects import redirect
from fxprune.rewrite.recurrent import refresh


def fill(small: nn.Module, fakes: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> None:
    """Replace the fake tensors of a model, wherever it holds them or refers to them. Changes `small`.

    fakes, real: name -> the fake tensor, with the attributes of the original one, and the real one.
    """
    of = {id(fake): real[name] for name, fake in fakes.items()}
    for name, fake in fakes.items():
        give_attributes(real[name], fake, lambda value: value)
    redirect(small, of)
    redirect([tensor for tensor in real.values() if tensor.__dict__], of)
    for module in small.modules():
        refresh(module)
