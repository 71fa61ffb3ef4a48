"""Both models on one part of the data, layer by layer.

A lane runs the original and the small model up to the same layer, and gives what the small one reads there and what
the original computes. Then that layer is refitted, before the small model goes on. So a later layer reads what it will
read in the repaired model. Both runs wait in the middle, with their activations in memory or on disk, or they begin
again for each layer, which needs time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._repair.batches import DataPart, own_tensors
from fxprune._repair.on_disk import Parked
from fxprune._repair.pages import Pages
from fxprune._repair.pairs import LayerPair
from fxprune._repair.survey import Survey, survey
from fxprune._repair.suspended import Stopped, SuspendedRun
from fxprune.capture.module_copy import copy_module
from fxprune.errors import FxpruneError, InputError, text_of
from fxprune.running.watch import LayerKey, Parameters, ProductCall, Watch


@dataclass
class Model:
    """A model that is watched. What its forward writes into itself is gone after each run.

    name, advice: what errors call it, and what they advise.
    written: the ids of tensors into which its forward writes. stacks: see `Parameters`.
    pages: its weights that lie elsewhere.
    """

    module: nn.Module
    name: str = "the model"
    advice: str = (
        "let a batch hold what one call takes, or pick it out: `repair_inputs=lambda batch: batch[0]`, "
        "which is `inputs=` of fxprune.repair"
    )
    written: set[int] = field(default_factory=set)
    pages: Pages = field(default_factory=lambda: Pages(0))
    stacks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    parameters: Parameters = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = Parameters(self.module, self.stacks)
        devices = {tensor.device for tensor in self.parameters.tensors.values()}
        self.device = devices.pop() if len(devices) == 1 else None

    def run(self, part: DataPart, prepared: Callable[[nn.Module], None] = lambda copied: None) -> Any:
        """Its outputs, without gradients. prepared: called with the copy of the modules that runs."""
        with torch.no_grad(), self.pages.mode():
            return self._called(part, prepared)()

    def run_with_gradients(self, part: DataPart) -> Any:
        """Its outputs, through which gradients reach the weights."""
        forward = self._called(part)
        with torch.enable_grad():
            return forward()

    def watched(
        self, part: DataPart, before: Callable[[ProductCall], None] = lambda call: None, after: Any = lambda call: None
    ) -> Any:
        """Its outputs; each product with a parameter is reported."""
        forward = self._called(part)
        with torch.no_grad(), self.pages.mode(), Watch(self.parameters, before, after):
            return forward()

    def surveyed(self, part: DataPart) -> Survey:
        """The survey of a run on a part. Notes the tensors into which its forward writes."""
        before = [(tensor, tensor._version, tensor.detach().clone()) for tensor in self.module.buffers()]
        with self.pages.mode():
            found = survey(self.parameters, self._called(part))
        for tensor, version, values in before:
            if tensor._version != version:
                self.written.add(id(tensor))
                with torch.no_grad():
                    tensor.copy_(values)
        return found

    def _called(self, part: DataPart, prepared: Callable[[nn.Module], None] = lambda copied: None) -> Callable[[], Any]:
        """A call of a new copy of the modules around the same tensors, but for those that forward writes into."""
        copied = copy_module(self.module, lambda t: t.detach().clone() if id(t) in self.written else t)
        prepared(copied)
        args, kwargs = own_tensors(part.inputs, self.device)

        def call() -> Any:
            try:
                return copied(*args, **kwargs)
            except FxpruneError:
                raise
            except Exception as error:
                raise InputError(
                    f"{self.name} raises an error on a batch",
                    at=f"batch {part.batch}",
                    why=text_of(error),
                    do=self.advice,
                ) from error

        return call


WAITS_IN = ("memory", "disk", "")
"""The places of the activations of a lane that waits; "" for a lane that begins again for each layer."""


class Lane:
    """Both models on one part of the data.

    calls: how often the small model calls each layer on it. waits_in: one of `WAITS_IN`.
    """

    def __init__(
        self,
        small: Model,
        original: Model,
        part: DataPart,
        calls: Mapping[LayerKey, int],
        waiting_at: Collection[LayerKey],
        *,
        waits_in: str,
    ) -> None:
        self.small, self.original, self.part = small, original, part
        self.calls, self.waits_in = calls, waits_in
        self._at = waiting_at
        self._parked: list[Parked] = []
        self._runs = (self._waiting(small), self._waiting(original, after=True))

    def at(self, pair: LayerPair) -> Iterator[tuple[ProductCall, ProductCall]]:
        """The calls of a layer in the small model, before it is refitted, and in the original.

        Raises `OtherCallsError` if one of the models has fewer of them.
        """
        count = self.calls.get(pair.key, 0)
        if not count:
            return
        if self.waits_in and pair.key in self._at:
            for parked in self._parked:
                parked.fetch()
            small, original = (self._until(run, pair.key) for run in self._runs)
            if small is not None and original is not None:
                yield small, original
                if not all(parked.park() for parked in self._parked):
                    self.stop()
                return
            self.stop()
        found = [self._calls(model, pair.key, count) for model in (self.small, self.original)]
        if len(found[0]) != len(found[1]):
            raise OtherCallsError(f"the small model calls it {len(found[0])} times, the original {len(found[1])} times")
        yield from zip(*found, strict=True)

    def stop(self) -> None:
        """End the runs; later layers begin again."""
        self.waits_in = ""
        for run in self._runs:
            run.stop()
        for parked in self._parked:
            parked.close()
        self._parked.clear()

    def _waiting(self, model: Model, *, after: bool = False) -> SuspendedRun:
        """A run that waits at each layer: before it, or after it where its outputs are wanted."""

        parked = Parked() if self.waits_in == "disk" else None
        if parked is not None:
            self._parked.append(parked)

        def forward() -> Any:
            hook = {"after" if after else "before": lambda call: run.pause(call) if call.key in self._at else None}
            with contextlib.nullcontext() if parked is None else parked.results:
                return model.watched(self.part, **hook)

        run = SuspendedRun(forward)
        return run

    @staticmethod
    def _until(run: SuspendedRun, key: LayerKey) -> ProductCall | None:
        """The call at which a run waits next, None if that is another layer."""
        call = run.resume()
        return call if call is not None and call.key == key else None

    def _calls(self, model: Model, key: LayerKey, count: int) -> list[ProductCall]:
        """All calls of a layer in a run that ends with the last of them."""
        found: list[ProductCall] = []

        def note(call: ProductCall) -> None:
            if call.key == key:
                found.append(call)
                if len(found) == count:
                    raise Stopped

        with contextlib.suppress(Stopped):
            model.watched(self.part, after=note)
        return found


class OtherCallsError(Exception):
    """The two models call a layer differently often on a part of the data."""


def first_not_finite(model: Model, part: DataPart) -> str:
    """The parameter of the first layer that reads or gives NaN or infinities in a run, "" if none does."""
    found: list[str] = []

    def note(call: ProductCall) -> None:
        if not found and not (_finite(call.product.x) and _finite(call.y)):
            found.append(call.key[0])

    model.watched(part, after=note)
    return found[0] if found else ""


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())
