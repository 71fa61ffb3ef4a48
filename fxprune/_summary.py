"""`summary`: the figures of a model and of its small model, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune._quality import Quality, quality_of
from fxprune._search import number_of
from fxprune._verify import refuse_swapped
from fxprune.arguments import checks_arguments, shown
from fxprune.capture.program import as_module
from fxprune.capture.tensors import Tensors
from fxprune.costs import Latency, cost, measured_in_turn, peak_memory
from fxprune.costs.latency import milliseconds
from fxprune.errors import InputError, counted
from fxprune.notebooks import html_table
from fxprune.report.text import figure, table
from fxprune.report.views import checked

COUNTS = {"params": "parameters", "bytes": "bytes", "macs": "MACs", "memory": "peak memory, bytes"}
"""Field of `ModelFigures` -> its name in a table, for what is counted."""

Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one model.

    params, bytes, macs: as in `fxprune.Cost`. memory: the peak of activations in bytes, see
    `fxprune.costs.peak_memory`. latency: of one forward, None where it was not measured. score: what the user's
    function returns, None without one.
    """

    params: int
    bytes: int
    macs: int | None
    memory: int
    latency: Latency | None = None
    score: float | None = None


@dataclass(frozen=True)
class Summary:
    """The figures of the original and of the small model. quality: of the predictions, None without data."""

    before: ModelFigures
    after: ModelFigures
    quality: Quality | None = None

    def report(self, format: str = "text") -> str:
        """A table: "text" or "markdown"; or "json", with every figure. Times are in seconds there."""
        if checked(format) == "json":
            return json.dumps({"schema": "fxprune.summary/1", **asdict(self)}, indent=1, allow_nan=False)
        return table(("", "before", "after", "left"), list(self._rows()), format == "markdown", right=(1, 2, 3))

    def __str__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        title = f"Summary: {self.before.params} -> {self.after.params} parameters"
        return html_table(title, ("", "before", "after", "left"), list(self._rows()), right=(1, 2, 3))

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        before, after = self.before, self.after
        for key, name in COUNTS.items():
            old, new = getattr(before, key), getattr(after, key)
            yield name, figure(old), figure(new), _share(old, new)
        old, new = before.latency, after.latency
        if old is not None and new is not None:
            conditions = f"latency ({old.device}, {counted(old.threads, 'thread')})"
            yield conditions, _time(old), _time(new), _share(old.seconds, new.seconds)
        if before.score is not None and after.score is not None:
            yield "score", f"{before.score:.4g}", f"{after.score:.4g}", f"{after.score - before.score:+.4g}"
        if self.quality is not None:
            yield "KL divergence", "", f"{self.quality.divergence:.4g}", ""
            for k, share in self.quality.agreement.items():
                yield f"top-{k} agreement", "", f"{share:.1%}", ""
            if self.quality.perplexity is not None:
                yield "perplexity, ratio", "", f"{self.quality.perplexity:.4g}", ""


@checks_arguments("model", "small", "rounds")
def summary(
    model: nn.Module | ExportedProgram,
    small: nn.Module | ExportedProgram,
    inputs: Any,
    score: Score | None = None,
    *,
    quality: Iterable[Any] | None = None,
    rounds: int = 20,
) -> Summary:
    """The parameters, bytes, MACs, peak memory, latency and score of two models, side by side.

    The latencies are medians of measurements in turns on this machine, on the device where the models are, with the
    number of threads of torch. The models are neither changed nor put into another mode.

    Args:
        model, small: the original and the small model.
        inputs: the inputs of one call of both models, as `fxprune.transform` takes them.
        score: a function that takes a model and returns a number, such as its accuracy. It gets a copy.
        quality: batches of inputs, such as tokens of texts, on which the predictions of the two are compared: the mean
            KL divergence from the original, the share of its 1, 5 and 10 best classes that are among those of the small
            model, and for tokens the ratio of the perplexities on the next ones. Tokens without attention do not count.
        rounds: the number of measurements of each latency; 0 leaves the latency out.

    Raises `InputError` where the inputs do not fit, or the score raises or is no finite number; `CaptureError` where a
    forward raises.

    >>> import torch, fxprune
    >>> net, x = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 2)), torch.zeros(1, 8)
    >>> found = fxprune.summary(net, fxprune.transform(net, x, ratio=0.5), x, rounds=3)
    >>> found.before.params, found.after.params, found.after.memory
    (706, 354, 136)
    """
    if rounds < 0:
        raise InputError(
            "rounds must be at least 0", at=f"summary(rounds={rounds})", do="pass rounds=10, or 0 for no latency"
        )
    if score is not None and not callable(score):
        raise InputError("score must be a function", at=f"score={shown(score)}", do="pass one that takes the model")
    refuse_swapped(model, small, "summary")
    modules = [as_module(one, inputs) for one in (model, small)]
    weightless = any(Tensors.of(module).weightless for module in modules)
    times = [None, None] if weightless or not rounds else measured_in_turn(modules, inputs, rounds)
    before, after = (
        _figures(module, inputs, latency, None if score is None else number_of(score, module))
        for module, latency in zip(modules, times, strict=True)
    )
    return Summary(before, after, None if quality is None else quality_of(modules[0], modules[1], quality))


def _figures(model: nn.Module, inputs: Any, latency: Latency | None, score: float | None) -> ModelFigures:
    counted = cost(model, inputs)
    return ModelFigures(counted.params, counted.bytes, counted.macs, peak_memory(model, inputs), latency, score)


def _time(latency: Latency) -> str:
    return f"{milliseconds(latency.seconds)} ± {latency.share:.0%}"


def _share(before: float | None, after: float | None) -> str:
    if not before or after is None:
        return ""
    text = f"{after / before:.1%}"
    return "> 99.9%" if text == "100.0%" and after < before else text
