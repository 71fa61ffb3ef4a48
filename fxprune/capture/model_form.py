"""The form of a model: what an analysis of it depends on, which is everything but the numbers of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.capture.fake_tensors import MOST_NUMBERS
from fxprune.capture.modes import MODES
from fxprune.capture.tensors import Tensors, constants_of
from fxprune.errors import text_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class ModelForm:
    """A model without the numbers of its weights.

    modules: name -> class, settings, mode and hooks, as a text.
    tensors: name of a parameter or buffer -> shape, dtype and device, as a text.
    objects: the tensors themselves, by name.
    numbers: name of a small tensor that is not trained -> its numbers: forward may read them.
    """

    modules: Mapping[str, str]
    tensors: Mapping[str, str]
    objects: Mapping[str, torch.Tensor]
    numbers: Mapping[str, torch.Tensor]

    def difference(self, other: ModelForm) -> str:
        """The first difference from the form of another time, as a sentence; "" if there is none."""
        for what, now, before in (("module", self.modules, other.modules), ("tensor", self.tensors, other.tensors)):
            for name in dict.fromkeys((*before, *now)):
                if now.get(name) != before.get(name):
                    known = before.get(name, "missing"), now.get(name, "missing")
                    return f'the {what} "{name}" is {known[1]}, it was {known[0]}'
        return ""

    def same_objects(self, other: ModelForm) -> bool:
        """True if all tensors are the same objects, and those that forward may read have the same numbers."""
        return (
            self.objects.keys() == other.objects.keys()
            and all(tensor is other.objects[name] for name, tensor in self.objects.items())
            and self.numbers.keys() == other.numbers.keys()
            and all(torch.equal(numbers, other.numbers[name]) for name, numbers in self.numbers.items())
        )


def form_of(model: nn.Module) -> ModelForm:
    """The form of a model now."""
    registered = Tensors.of(model)
    held = registered.with_constants(constants_of(model))
    counting = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _NormBase)
        for name in module._buffers
    }
    return ModelForm(
        {path: _module_text(module) for path, module in model.named_modules(remove_duplicate=False)},
        {name: f"{tuple(t.shape)} {t.dtype} on {t.device}" for name, t in registered.items()},
        dict(registered),
        {name: t.detach().clone() for name, t in held.items() if name not in counting and _readable(t)},
    )


def _readable(tensor: torch.Tensor) -> bool:
    """True if an analysis knows the numbers of a tensor: see `Faker.known`."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.requires_grad
    return plain and tensor.device.type == "cpu" and tensor.numel() <= MOST_NUMBERS


def _module_text(module: nn.Module) -> str:
    """The class of a module, its settings, its mode and the number of its hooks."""
    try:
        settings = module.extra_repr()
    except Exception as error:
        settings = text_of(error, lines=1)
    hooks = sum(len(getattr(module, kind)) for kind in HOOKS)
    text = f"{type(module).__name__}({settings}) in {MODES[module.training]} mode"
    return f"{text} with {hooks} hooks" if hooks else text
