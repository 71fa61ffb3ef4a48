"""One model through the pass, compared with the masked reference by code that shares nothing with the package's proof.

The oracle knows no rules: the original, its class and its own forward, with every removed slot of every parameter and
buffer set to zero.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from tests.behaviour import GIVEN_UP, compare_behaviour
from tests.models.zoo import SEED, Entry
from tests.support import call

TOLERANCE = 1e-9
MATTERS = 1e-6
"""The least relative change that a removal must make, for the comparison to mean anything."""
RATIO = 0.3
INTERNAL = ("past_key_values", "cache_params", "mems")
"""Fields of an output that hold the state of generation, not a result."""


def tensors_of(output: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an output with their places; of tuples, lists, mappings and dataclasses. Caches are left out."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key not in INTERNAL:
                yield from tensors_of(value, f"{path}.{key}")
    elif dataclasses.is_dataclass(output):
        fields = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
        yield from tensors_of(fields, path)
    elif isinstance(output, (tuple, list)):
        for position, value in enumerate(output):
            yield from tensors_of(value, f"{path}[{position}]")


def shapes_of(output: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in tensors_of(output)}


def error_of(ours: Any, reference: Any) -> float:
    """max |ours - reference| / max |reference|, the largest over the tensors; inf where places or shapes differ."""
    a, b = dict(tensors_of(ours)), dict(tensors_of(reference))
    if not b or shapes_of(ours) != shapes_of(reference):
        return math.inf
    worst = 0.0
    for path, theirs in b.items():
        x, y = a[path].detach().double(), theirs.detach().double()
        if y.numel():
            difference = float((x - y).abs().max())
            error = difference / max(float(y.abs().max()), 1e-300) if difference else 0.0
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


class InDouble(TorchDispatchMode):
    """Casts to float32 that a forward makes on its own account (norms, rotary embeddings) are casts to float64."""

    LOW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [torch.float64 if isinstance(a, torch.dtype) and a in self.LOW else a for a in args]
        kwargs = {
            k: torch.float64 if isinstance(v, torch.dtype) and v in self.LOW else v for k, v in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Everything inside is computed in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InDouble():
            yield
    finally:
        torch.set_default_dtype(before)


def run(model: nn.Module, inputs: Any) -> Any:
    """The output in float64; random numbers, where a forward draws any, are the same at every call."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_double():
        torch.manual_seed(SEED)
        return call(model, inputs)


def measure(entry: Entry, *, behaviour: bool = False) -> dict[str, Any]:
    """Build the model, prune it with and without `exact`, compare. Everything that can be put into JSON.

    behaviour: True for the exact run alone, the one whose behaviour is compared, without the package's own proof.
    """
    result: dict[str, Any] = {"key": entry.key, "note": entry.note}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        model, inputs = entry.build()
        result["params"] = sum(p.numel() for p in model.parameters())
        result["build_seconds"] = time.perf_counter() - started
        original = run(model, inputs)
        result["outputs"] = {k: list(v) for k, v in shapes_of(original).items()}
        training = entry.training() if entry.training else None
        if behaviour:
            _exact(result, model, inputs, original, training, verify=False)
            return result
        for part in (_locked, _exact, _all_groups):
            part(result, model, inputs, original, training)
    return result


def passed(result: Mapping[str, Any]) -> bool:
    """The small model equals the masked reference, and something was removed that mattered."""
    return bool(result.get("error", math.inf) < TOLERANCE and result["removed"] > 0 and result["effect"] > MATTERS)


def keeps_class(result: Mapping[str, Any]) -> bool:
    """The small model has the class of the original, and loses at least 90 % of what the best path loses."""
    removed = result.get("all_removed", 0.0)
    return bool(result.get("same_class")) and removed >= 0.9 * max(removed, result.get("graph_removed", 0.0))


def behaves(result: Mapping[str, Any]) -> bool:
    """Behaviour was compared, and no difference was found."""
    return result.get("behaviour") == []


def _locked(result: dict[str, Any], model: nn.Module, inputs: Any, original: Any, training: Any) -> None:
    with contextlib.suppress(fxprune.FxpruneError):  # `transform` below fails for the same reason and says so
        held: Counter[str] = Counter()
        for locked in fxprune.analyze(model, inputs).locked:
            held[f"{locked.event.op}: {locked.event.why}"] += locked.parameters
        result["locked"] = [[text, size / result["params"]] for text, size in held.most_common(8)]


def _exact(
    result: dict[str, Any], model: nn.Module, inputs: Any, original: Any, training: Any, *, verify: bool = True
) -> None:
    """30 % of every group that changes no statistic, against the masked original."""
    started = time.perf_counter()
    options: dict[str, Any] = {"ratio": RATIO, "importance": "random", "seed": SEED, "exact": True}
    options["also"] = [] if training is None else [training]
    try:
        small = fxprune.transform(model, inputs, **options, verify=verify)
    except fxprune.VerificationError as error:
        result["failure"] = brief(error)
        small = fxprune.transform(model, inputs, **options, verify=False)
    except Exception as error:
        result["failure"] = brief(error)
        return
    result["seconds"] = time.perf_counter() - started
    made = fxprune.record(small)
    result["path"] = made.path
    result["why_not"] = {path: str(why)[:500] for path, why in (getattr(made, "why_not", None) or {}).items()}
    result["own_error"] = made.error
    result["removed"] = 1 - sum(p.numel() for p in small.parameters()) / result["params"]
    reference_model = fxprune.masked(model, made.removed)
    reference = run(reference_model, inputs)
    try:
        result["error"] = error_of(run(small, inputs), reference)
    except Exception as error:
        result["failure"] = f"the small model does not run: {brief(error)}"
        return
    result["effect"] = error_of(original, reference)
    result["behaviour"] = _behaviour(model, small, inputs, training)
    if not result["error"] < TOLERANCE:
        with torch.no_grad():
            for parameter in reference_model.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1 + torch.finfo(torch.float64).eps * torch.randn_like(parameter).sign())
        result["rounding"] = error_of(run(reference_model, inputs), reference)


def _behaviour(model: nn.Module, small: nn.Module, inputs: Any, training: Any) -> list[str]:
    """The differences in behaviour that the path of the small model does not give up by its nature.

    A batch norm over two values that are nearly equal turns rounding into differences. So images are turned too, and a
    step of training is taken on all of them, where the one on the images themselves differs.
    """
    options = {"without": GIVEN_UP[fxprune.record(small).path], "around": in_double}
    try:
        found = compare_behaviour(model, small, inputs, training=training, **options)
        if found and training is None and all(sentence.startswith(IN_TRAINING) for sentence in found):
            found = compare_behaviour(model, small, inputs, training=turned(inputs), **options)
    except Exception as error:
        return [f"not compared: {brief(error)}"]
    return [sentence[:300] for sentence in found[:20]]


IN_TRAINING = ("training:", "gradients:", "buffers:")
"""The beginnings of the differences in a step of training."""


def turned(inputs: Any) -> Any:
    """The inputs, and behind them their images upside down, in a mirror, and both."""

    def more(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 4:
            return tensor
        return torch.cat([tensor, tensor.flip(-2), tensor.flip(-1), tensor.flip(-2, -1)])

    return pytree.tree_map_only(torch.Tensor, more, inputs)


def _all_groups(result: dict[str, Any], model: nn.Module, inputs: Any, original: Any, training: Any) -> None:
    """The same with the groups that change a statistic: it runs, its outputs keep their shapes, the proof holds."""
    try:
        small = fxprune.transform(model, inputs, ratio=RATIO, importance="random", seed=SEED)
        made = fxprune.record(small)
        result["all_removed"] = 1 - sum(p.numel() for p in small.parameters()) / result["params"]
        result["all_path"], result["all_error"] = made.path, made.error
        result["all_shapes"] = shapes_of(run(small, inputs)) == shapes_of(original)
        _class(result, model, inputs, small)
    except Exception as error:
        result["all_failure"] = brief(error)


def _class(result: dict[str, Any], model: nn.Module, inputs: Any, small: nn.Module) -> None:
    """Writes into `result` if the class is kept, and how much a graph loses for the same request."""
    result["same_class"] = type(small) is type(model)
    if not result["same_class"]:
        result["class_lost"] = " ".join(str(fxprune.record(small).why_not.get("eager")).split())[:400]
    options: dict[str, Any] = {"ratio": RATIO, "importance": "random", "seed": SEED, "prefer": "graph", "verify": False}
    with contextlib.suppress(fxprune.FxpruneError):
        graph = fxprune.transform(model, inputs, **options)
        result["graph_removed"] = 1 - sum(p.numel() for p in graph.parameters()) / result["params"]


def brief(error: BaseException) -> str:
    """The kind of an error and its text on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
