"""The settings of a repair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.errors import InputError, nearest

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0)
"""The ridges that are tried, as shares of the mean second moment of an input."""

MODES = ("weights", "outputs", "bias", "norms")
"""The things that a repair can change."""

MEMORY, DISK = 2 << 30, 64 << 30
"""The bytes of activations that wait between layers, in memory and on disk, unless other ones are asked for."""

STEPS = 1000
"""The gradient steps of mode "outputs", unless another number is asked for."""


@dataclass(frozen=True)
class RepairSettings:
    """The settings of a repair.

    mode: one of `MODES`. ridges: those to try. holdout: the share of the samples that judge. memory, disk: the most
    bytes of activations that wait between layers there. progress: True to show a bar. steps: of gradients. noise: that
    is added to the inputs in each step, as a share of the standard deviation of a sample.

    Raises `InputError` for values that make no sense.
    """

    mode: str = "weights"
    ridges: Sequence[float] = RIDGES
    holdout: float = 0.2
    memory: int = MEMORY
    disk: int = DISK
    progress: bool = False
    steps: int = STEPS
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            why = nearest(str(self.mode), MODES)
            do = f"choose one of {', '.join(MODES)}"
            raise InputError(f"there is no repair mode {self.mode!r}", at=f"mode={self.mode!r}", why=why, do=do)
        if not all(math.isfinite(ridge) and ridge >= 0 for ridge in self.ridges):
            given = ", ".join(map(str, self.ridges))
            why, do = (
                f"it is {given}, and keeps weights near those they have",
                "pass for example ridge=0.001, or leave it out",
            )
            raise InputError("ridge must be a number of at least 0", at=f"ridge={given}", why=why, do=do)
        if not 0 < self.holdout < 1:
            why = f"it is {self.holdout}; some samples refit the layers, and the others judge"
            do = "pass for example holdout=0.2"
            raise InputError("holdout must be a share between 0 and 1", at=f"holdout={self.holdout}", why=why, do=do)
        if self.steps < 1:
            why, do = f"it is {self.steps}, and counts gradient steps", "pass for example steps=1000"
            raise InputError("steps must be at least 1", at=f"steps={self.steps}", why=why, do=do)
        if self.steps != STEPS and self.mode != "outputs":
            why = f'mode="{self.mode}" takes no gradient steps'
            raise InputError(
                "steps is without effect here", at=f"steps={self.steps}", why=why, do='pass mode="outputs"'
            )
        if not (math.isfinite(self.noise) and self.noise >= 0):
            why, do = f"it is {self.noise}", "pass a share of the standard deviation of an input, such as 0.2"
            raise InputError("noise must be a number of at least 0", at=f"noise={self.noise}", why=why, do=do)
        if self.noise and self.mode != "outputs":
            why, do = f'mode="{self.mode}" takes no gradient steps', 'pass mode="outputs"'
            raise InputError("noise is without effect here", at=f"noise={self.noise}", why=why, do=do)
        for name in ("memory", "disk"):
            if getattr(self, name) < 0:
                given = getattr(self, name)
                why, do = f"it is {given}, below 0", "pass 0 for none"
                raise InputError(f"{name} must be a number of bytes", at=f"{name}={given}", why=why, do=do)
