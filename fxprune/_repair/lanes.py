"""Both models on one part of the data, layer by layer.

A lane runs the original and the small model up to the same layer, and gives what the small one reads there and what
the original computes. Then that layer is refitted, before the small model goes on. So a later layer reads what it will
read in the repaired model. Either both runs wait in the middle, which needs the memory of their activations, or they
begin again for each layer, which needs time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune._repair.pairs import LayerPair
from fxprune._repair.suspended import Stopped, SuspendedRun
from fxprune._repair.watch import LayerKey, Parameters, ProductCall, Watch
from fxprune.capture.inputs import Inputs


@dataclass
class Model:
    """A model that is watched."""

    module: nn.Module
    parameters: Parameters = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = Parameters(self.module)

    def run(self, inputs: Inputs) -> Any:
        """Its outputs, without gradients."""
        with torch.no_grad():
            return self.module(*inputs[0], **inputs[1])

    def watched(
        self, inputs: Inputs, before: Callable[[ProductCall], None] = lambda call: None, after: Any = lambda call: None
    ) -> Any:
        """Its outputs; each product with a parameter is reported."""
        with torch.no_grad(), Watch(self.parameters, before, after):
            return self.module(*inputs[0], **inputs[1])


class Lane:
    """Both models on one part of the data.

    waits: True if the runs wait in the middle.
    """

    def __init__(
        self, small: Model, original: Model, inputs: Inputs, waiting_at: Collection[LayerKey], *, waits: bool
    ) -> None:
        self.small, self.original, self.inputs = small, original, inputs
        self.waits = waits
        self._at = waiting_at
        self._runs = (self._waiting(small), self._waiting(original, after=True))

    def at(self, pair: LayerPair) -> Iterator[tuple[ProductCall, ProductCall]]:
        """The calls of a layer in the small model, before it is refitted, and in the original."""
        if self.waits and pair.small.calls == 1:
            small, original = (self._until(run, pair.key) for run in self._runs)
            if small is not None and original is not None:
                yield small, original
                return
            self.stop()
        yield from zip(self._calls(self.small, pair), self._calls(self.original, pair), strict=False)

    def stop(self) -> None:
        """End the runs; later layers begin again."""
        self.waits = False
        for run in self._runs:
            run.stop()

    def _waiting(self, model: Model, *, after: bool = False) -> SuspendedRun:
        """A run that waits at each layer: before it, or after it where its outputs are wanted."""

        def forward() -> Any:
            hook = {"after" if after else "before": lambda call: run.pause(call) if call.key in self._at else None}
            return model.watched(self.inputs, **hook)

        run = SuspendedRun(forward)
        return run

    @staticmethod
    def _until(run: SuspendedRun, key: LayerKey) -> ProductCall | None:
        """The call at which a run waits next, None if that is another layer."""
        call = run.resume()
        return call if call is not None and call.key == key else None

    def _calls(self, model: Model, pair: LayerPair) -> list[ProductCall]:
        """All calls of a layer in a run that ends with the last of them."""
        found: list[ProductCall] = []

        def note(call: ProductCall) -> None:
            if call.key == pair.key:
                found.append(call)
                if len(found) == pair.small.calls:
                    raise Stopped

        with contextlib.suppress(Stopped):
            model.watched(self.inputs, after=note)
        return found
