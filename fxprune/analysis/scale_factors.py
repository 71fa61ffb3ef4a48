"""The factors of a small model whose code computes other scales from its smaller widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fxprune.capture.scopes import Key


@dataclass(frozen=True, eq=False)
class ScaleFactors:
    """The factors by which numbers of the small model are larger than those of the original.

    parameters: first name of a parameter -> a factor that broadcasts to its shape in the original.
    numbers: an operation -> the fractions that it is called with in the small model.
    results: an operation between such a parameter and such a fraction -> the factors of its results. They broadcast to
        the shapes in the original, and are NaN where nothing reads an element.
    """

    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    numbers: Mapping[Key, tuple[float, ...]] = field(default_factory=dict)
    results: Mapping[Key, tuple[torch.Tensor, ...]] = field(default_factory=dict)
