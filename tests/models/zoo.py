"""The register of real models: each entry builds a model with random numbers and its example inputs.

The families live in files of their own, which import their package when they are asked for entries, so that
importing this file costs nothing and a package that is not installed is a family that is not there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.support import calibrate, randomise

SEED = 3

FAMILIES = {
    "torchvision": ("tests.models.torchvision_zoo", "torchvision"),
    "timm": ("tests.models.timm_zoo", "timm"),
    "transformers": ("tests.models.transformers_zoo", "transformers"),
    "detection": ("tests.models.yolo", "torch"),
    "torch.nn": ("tests.models.recurrent", "torch"),
    "detectors": ("tests.models.detectors_zoo", "torchvision"),
    "diffusers": ("tests.models.diffusers_zoo", "diffusers"),
    "ultralytics": ("tests.models.ultralytics_zoo", "ultralytics"),
}
"""Family -> the file whose `entries()` lists its models, and the package that it needs."""


@dataclass(frozen=True)
class Entry:
    """One model: `build()` gives it in evaluation mode and float64, and its inputs (a tuple, or a dict of keywords).

    note: what stands for what (the family of a timm model), or what was made smaller than registered.
    training: gives the inputs of calls in training mode, where they are others.
    """

    family: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]
    note: str = ""
    training: Callable[[], Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"


def installed() -> list[str]:
    """The families whose package is there."""
    return [family for family, (_, package) in FAMILIES.items() if importlib.util.find_spec(package)]


def entries(*families: str) -> dict[str, Entry]:
    """The entries of these families by key; of all that are installed, where none is named."""
    found: dict[str, Entry] = {}
    for family in families or installed():
        for entry in importlib.import_module(FAMILIES[family][0]).entries():
            assert entry.key not in found, entry.key
            found[entry.key] = entry
    return found


def numbers(*shape: int) -> torch.Tensor:
    """Normal float64 numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def ids(high: int, *shape: int) -> torch.Tensor:
    """Integers in [3, high), the same at every call; 0 to 2 are left to padding, start and end."""
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(SEED))


def ready(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """The model in evaluation mode and float64, with random numbers that hide no error."""
    model = randomise(model.double().eval(), SEED, weights=True)
    return calibrate(model, inputs, SEED), inputs
