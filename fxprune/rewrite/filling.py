"""The real tensors of the smaller model, put where the fake ones stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.capture.containers import MOST_PARTS, is_container, parts, with_parts
from fxprune.rewrite.recurrent import refresh


def fill(small: nn.Module, tensors: Mapping[int, torch.Tensor]) -> None:
    """Replace the fake tensors of a model, also those in the containers of its attributes. Changes `small`.

    tensors: id of a fake tensor -> the real one. The containers must be the model's own.
    """
    seen: dict[int, Any] = {}
    for module in small.modules():
        for place in (module._parameters, module._buffers, module.__dict__):
            own: dict[str, Any] = place
            for name, value in own.items():
                if place is not module.__dict__ or name not in OF_EVERY_MODULE:
                    own[name] = _filled(value, tensors, seen)
        refresh(module)


def _filled(value: Any, tensors: Mapping[int, torch.Tensor], seen: dict[int, Any]) -> Any:
    """A value with the real tensors in it. Tuples are replaced, other containers change.

    seen: the containers that are done already, by id.
    """
    if isinstance(value, torch.Tensor):
        return tensors.get(id(value), value)
    if id(value) in seen or not is_container(value):
        return value
    found = parts(value)
    if len(found) > MOST_PARTS:
        return value
    if not isinstance(value, tuple):
        seen[id(value)] = value
    new = {key: _filled(item, tensors, seen) for key, item in found.items()}
    return value if all(new[key] is found[key] for key in found) else with_parts(value, new)
