"""The integers among the attributes of a model's modules: which ones there are, and how each is read and replaced.

A setting such as `self.num_heads` may count something. `marked_integers` finds out what, and `rewrite/attributes` gives
it its new value. This file only knows where settings stand.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

Setting = tuple[str, str, "int | None"]
"""The path of a module, the name of an attribute, and the position in it if it is a tuple or list (else None)."""


def mark_settings(model: nn.Module, marked: Callable[[int, Setting], int]) -> None:
    """Replace the integers in the attributes of a model and its submodules by marked ones. Changes `model`.

    Modules of torch are left out: the rewrite knows their attributes.

    marked: called with the value of a setting and the setting; returns the marked integer.
    """
    for path, part in model.named_modules():
        if type(part).__module__.startswith("torch.") or isinstance(part, (fx.GraphModule, nn.MultiheadAttention)):
            continue
        for name, value in part.__dict__.items():
            if type(value) is int and value > 1:
                part.__dict__[name] = marked(value, (path, name, None))
            elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
                items = [marked(v, (path, name, i)) if v > 1 else v for i, v in enumerate(value)]
                part.__dict__[name] = type(value)(items)


def read_setting(model: nn.Module, setting: Setting) -> int:
    """The value of a setting in a model."""
    path, name, position = setting
    value = getattr(model.get_submodule(path), name)
    return int(value if position is None else value[position])


def write_setting(model: nn.Module, setting: Setting, value: int) -> None:
    """Give a setting of a model a new value. A tuple or list is replaced by a new one. Changes `model`."""
    path, name, position = setting
    module = model.get_submodule(path)
    if read_setting(model, setting) == value:
        return
    if position is None:
        setattr(module, name, value)
    else:
        old = getattr(module, name)
        setattr(module, name, type(old)([*old[:position], value, *old[position + 1 :]]))


def name_of(setting: Setting) -> str:
    """The name of a setting for a reader: "blocks.0.attn.num_heads", or "sizes[1]" for a place in a sequence."""
    path, name, position = setting
    return f"{path}.{name}".lstrip(".") + ("" if position is None else f"[{position}]")
