"""The bytes of a cache: the keys, values and states that a model returns for its next call.

A cache is an object in the result that is no container of Python, such as those of `transformers`. It grows with the
length and the batch of the inputs: a budget is about the example inputs. The forward runs on fake tensors.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.fake_operations import run
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.inputs import Inputs, check_initialised, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.program import as_module
from fxprune.capture.scopes import Key, Scopes
from fxprune.capture.tensors import Tensors
from fxprune.capture.values import leaves, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.costs.runs import on_fakes_or_real
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks

Cached = tuple[int, Key | None, int]
"""The bytes of a tensor in a cache, the operation that makes it (None if unknown), and its place among the results."""


@checks_arguments("model")
@public_call_on_model
def cache_bytes(model: nn.Module | ExportedProgram, example_inputs: Any) -> int:
    """The bytes of the keys, values and states in the caches that one forward returns; 0 for a model without them.

    Raises `InputError` where the inputs do not fit, `CaptureError` where the forward raises.

    >>> import torch
    >>> cache_bytes(torch.nn.Linear(2, 3), torch.zeros(1, 2))
    0
    """
    module = as_module(model, example_inputs)
    check_initialised(Tensors.of(module))
    paths = without_hooks(paths_for(module, None, None, usual="class"))
    inputs = normalize(example_inputs)
    found = try_in_turn(paths, lambda path: _cached_on(module, inputs, path)).get()
    return sum(size for size, _, _ in found)


def _cached_on(model: nn.Module, inputs: Inputs, path: FrontEnd) -> list[Cached]:
    return cached_tensors(capture(model, inputs, path), inputs, model)


def cached_tensors(captured: Captured, inputs: Inputs, model: nn.Module) -> list[Cached]:
    """The tensors in caches of one forward on fake tensors, or on real ones if numbers decide."""
    return on_fakes_or_real(captured, model, lambda faker: _returned(captured, inputs, faker))


def _returned(captured: Captured, inputs: Inputs, faker: Faker | Real) -> list[Cached]:
    module = faker.module(captured.module)
    makers = _Makers(Scopes(module))

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        makers.scopes.node(node.name)
        return execute()

    result = walk(
        captured.graph, module, faker, captured.values(inputs), visit, (makers.scopes.watching(), makers)
    )  # fmt: skip
    return [(tensor.nbytes, *makers.of(tensor)) for tensor in tensors_of_caches(result)]


def tensors_of_caches(result: Any) -> list[torch.Tensor]:
    """The tensors in objects of a result that are no containers, each once, in the order of their attributes."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    for leaf in leaves(result):
        if not isinstance(leaf, torch.Tensor):
            _collect(leaf, found, seen)
    return list(found.values())


def _collect(value: Any, found: dict[int, torch.Tensor], seen: set[int]) -> None:
    """Adds the tensors in the attributes of an object, and in those of the objects there."""
    if id(value) in seen or isinstance(value, (type, nn.Module)):
        return
    seen.add(id(value))
    for leaf in leaves(getattr(value, "__dict__", ())):
        if isinstance(leaf, torch.Tensor):
            found[id(leaf)] = leaf
        else:
            _collect(leaf, found, seen)


class _Makers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operation makes each tensor."""

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = scopes
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Key, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        made = run(func, args, kwargs)
        name, _ = bound(func, args, kwargs)
        key = self.scopes.current.next_key(name)
        for position, tensor in enumerate(tensors_in(made)):
            self._known[id(tensor)] = weakref.ref(tensor), key, position
        return made

    def of(self, tensor: torch.Tensor) -> tuple[Key | None, int]:
        """The operation that makes a tensor, and its place among the results."""
        reference, key, position = self._known.get(id(tensor), (lambda: None, None, 0))
        return (key, position) if reference() is tensor else (None, 0)


class CacheBytes:
    """The bytes in the caches of the model that was analysed, and of the smaller ones that removals leave.

    full: those of the original. No model is made.
    """

    def __init__(self, findings: Findings) -> None:
        known = {k: made for o in findings.observed.observations.values() for k, made in o.outputs.items()}
        found = cached_tensors(findings.captured, findings.inputs, findings.model)
        self._tensors = [
            (size, tuple(_vectors(known.get(key, ()) if key else (), place))) for size, key, place in found
        ]
        self.full = sum(size for size, _, _ in found)

    def of(self, removal: Removal | None = None) -> int:
        """The bytes, with a removal those of the smaller model."""
        if removal is None:
            return self.full
        total = 0
        for size, vectors in self._tensors:
            before = math.prod(vector.size for vector in vectors)
            total += size * math.prod(map(removal.count, vectors)) // before if before else size
        return total


def _vectors(results: Sequence[Any], place: int) -> Iterator[Vector]:
    """The dimensions of one of the results of an operation, none if they are not known."""
    if place < len(results):
        yield from results[place].vectors
