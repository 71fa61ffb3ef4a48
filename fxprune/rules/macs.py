"""The decorator `multiplies` under its old name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from fxprune import ops

Function = Callable[..., Any]


def multiplies(*operations: Any) -> Callable[[Function], Function]:
    """The decorator `fxprune.ops.multiplies`; warns that this name goes away."""
    warnings.warn("fxprune.rules.macs.multiplies is fxprune.ops.multiplies now", DeprecationWarning, stacklevel=2)
    return ops.multiplies(*operations)
