"""The small model gets the attributes that its class computes from the new config, and this config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn

from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.configs.builder import Built, is_config

NUMBERED = frozenset({"layer_idx"})
"""Attributes that layers get again where others go: see `fxprune.depth.carry_out`."""


class ChangedByHandError(Exception):
    """An attribute would be another one by the new config, and was changed after the model was built.

    scope: the path of its module.
    """

    def __init__(self, why: str, scope: str) -> None:
        self.scope = scope
        super().__init__(why)


def construct(
    small: nn.Module,
    original: nn.Module,
    before: Built,
    built: Built,
    path_before: Callable[[str], str] = str,
) -> None:
    """Give a small model what its class computes from the new config. Changes `small`.

    Only what the new config changes is changed: what was set in the model later stays.

    before, built: the class, built from the config of the original and from that of the small model.
    path_before: gives the path in the original of a module of the small model; the same by default.
    Raises `ChangedByHandError` for an attribute that cannot have both values.
    """
    old, made = dict(before.model.named_modules()), dict(built.model.named_modules())
    first = dict(original.named_modules())
    done: set[int] = set()
    for path, module in small.named_modules():
        origin = path_before(path)
        if path not in made or origin not in old:
            continue
        if type(module) is not type(first[origin]):
            why = f'"{path}" is a {type(module).__name__} of fxprune now, which the class does not make'
            raise ChangedByHandError(why, path)
        own, then, now = module.__dict__, old[origin].__dict__, made[path].__dict__
        was = first[origin].__dict__
        for name in now.keys() - OF_EVERY_MODULE:
            if is_config(now[name]):
                if name in own and is_config(own[name]):
                    _construct_config(own[name], was[name], then.get(name), now[name], done)
            elif not is_same(then.get(name), now[name]):
                by_hand = not any(is_same(was.get(name), value) for value in (then.get(name), now[name]))
                if name in was and name not in NUMBERED and by_hand:
                    at = f"{path}.{name}".lstrip(".")
                    why = f"{at} is {now[name]!r} by the new config, {then.get(name)!r} by the old one"
                    raise ChangedByHandError(f"{why}, and was set to {was[name]!r}", path)
                own[name] = _taken(own.get(name), now[name])
            elif name in was and _is_plain(was[name]) and not is_same(own.get(name), was[name]):
                own[name] = copy.deepcopy(was[name])


def _taken(own: Any, made: Any) -> Any:
    """A copy of a value that a class computed; a tensor in the type and on the device of that of the small model."""
    if isinstance(made, torch.Tensor) and isinstance(own, torch.Tensor):
        return made.to(own.device, own.dtype)
    return copy.deepcopy(made)


def _construct_config(own: Any, was: Any, then: Any, now: Any, done: set[int]) -> None:
    """Give the config of the small model the fields that are others in the new config. Changes `own`."""
    if id(own) in done:
        return
    done.add(id(own))
    mine, original, before, after = vars(own), vars(was), vars(then) if is_config(then) else {}, vars(now)
    for name, value in after.items():
        if is_config(value):
            if is_config(mine.get(name)):
                _construct_config(mine[name], original[name], before.get(name), value, done)
            continue
        changed = not is_same(before.get(name), value)
        is_new = original.get(name) is None and not name.startswith("_")  # the class has chosen the value so far
        mine[name] = copy.deepcopy(value if changed or is_new else original[name])
    for name in before.keys() - after.keys():
        mine.pop(name, None)


def is_same(one: Any, other: Any) -> bool:
    """True if two values are the same numbers, texts or tensors, alone or in containers; or both something else."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape
        return same and ("meta" in (one.device.type, other.device.type) or bool(torch.equal(one.cpu(), other.cpu())))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, set | frozenset) and isinstance(other, set | frozenset):
        return one == other
    if is_dataclass(one) and is_dataclass(other) and not isinstance(one, type) and not is_config(one):
        return type(one) is type(other) and is_same(vars(one), vars(other))
    if _is_plain(one) or _is_plain(other):
        return type(one) is type(other) and one == other
    return True


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
