"""The deprecated name of the decorator `fxprune.ops.multiplies`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from fxprune import ops

Function = Callable[..., Any]


def multiplies(*operations: Any) -> Callable[[Function], Function]:
    """Returns `fxprune.ops.multiplies(*operations)`, and warns that this name is deprecated."""
    warnings.warn("fxprune.rules.macs.multiplies is fxprune.ops.multiplies now", DeprecationWarning, stacklevel=2)
    return ops.multiplies(*operations)
