"""The peak memory of activations: the bytes that tensors made by forward hold at once at most.

Counted are the tensors that operations of one forward make, from when they are made until nothing refers to them.
Parameters, buffers and inputs are not counted, nor is what one operation needs while it runs. The forward runs on fake
tensors, and the lifetimes are those that Python gives the tensors: the number is exact, whatever the device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.analysis.hookable import outputs_behind_hooks
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.fake_operations import run
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.inputs import Inputs, check_initialised, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.program import as_module
from fxprune.capture.scopes import Key, Scope, Scopes
from fxprune.capture.tensors import Tensors
from fxprune.capture.values import tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.costs.runs import on_fakes_or_real
from fxprune.ops.leaves import leaf_rule
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks


@checks_arguments("model")
@public_call_on_model
def peak_memory(model: nn.Module | ExportedProgram, example_inputs: Any) -> int:
    """The most bytes that the tensors made by one forward hold at once, without gradients.

    Raises `InputError` where the inputs do not fit, `CaptureError` where the forward raises.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1))
    >>> peak_memory(net, torch.zeros(3, 10))  # input and output of the ReLU: 2 * 3 * 100 numbers of 4 bytes
    2400
    """
    return _peak(as_module(model, example_inputs), normalize(example_inputs))


def _peak(model: nn.Module, inputs: Inputs) -> int:
    check_initialised(Tensors.of(model))
    paths = without_hooks(paths_for(model, None, None, usual="class"))
    return try_in_turn(paths, lambda path: _peak_on(model, inputs, path)).get()


def _peak_on(model: nn.Module, inputs: Inputs, path: FrontEnd) -> int:
    lifetimes = lifetimes_of(capture(model, inputs, path), inputs, model)
    return lifetimes.peak([tensor.bytes for tensor in lifetimes.tensors])


@dataclass
class Made:
    """A tensor with memory of its own.

    bytes: of its memory. key, position: the operation that makes it, and its place among the results.
    module: the path of the innermost module that runs.
    """

    bytes: int
    key: Key
    position: int
    module: str


@dataclass(frozen=True)
class Lifetimes:
    """All tensors of a forward, and the order in which their memory is taken and given back.

    events: positions in `tensors`, in order; the second time that one occurs, its memory is given back.
    """

    tensors: Sequence[Made]
    events: Sequence[int]

    def peak(self, sizes: Sequence[int], beside: Mapping[int, int] | None = None) -> int:
        """The most bytes at once, where the tensors have these sizes.

        beside: position of a tensor -> the bytes that are needed at the moment when it is made.
        """
        held, most = 0, 0
        alive: set[int] = set()
        for position in self.events:
            if position in alive:
                alive.remove(position)
                held -= sizes[position]
            else:
                alive.add(position)
                held += sizes[position]
                most = max(most, held + (beside or {}).get(position, 0))
        return most


def lifetimes_of(captured: Captured, inputs: Inputs, model: nn.Module) -> Lifetimes:
    """The tensors of one forward on fake tensors, or on real ones if numbers decide. model: the one in `captured`."""
    return on_fakes_or_real(captured, model, lambda faker: _followed(captured, inputs, faker))


def _followed(captured: Captured, inputs: Inputs, faker: Faker | Real) -> Lifetimes:
    module = faker.module(captured.module)
    follower = _Follower(Scopes(module))

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        follower.scopes.node(node.name)
        return execute()

    modes = (follower.scopes.watching(), follower)
    result = walk(captured.graph, module, faker, captured.values(inputs), visit, modes)
    events = tuple(follower.events)  # what is alive now is the result
    del result
    return Lifetimes(tuple(follower.tensors), events)


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when the memory of each tensor is taken and given back."""

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = scopes
        scopes.on_leave = self._left
        self.tensors: list[Made] = []
        self.events: list[int] = []
        self._alive: dict[int, int] = {}  # number of a memory -> position in `tensors`
        self._watches: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        made = run(func, args, kwargs)
        name, _ = bound(func, args, kwargs)
        key = self.scopes.current.next_key(name)
        given = {_number(tensor) for tensor in tensors_in((args, kwargs))}
        for position, tensor in enumerate(tensors_in(made)):
            number = _number(tensor)
            if number is not None and number not in given and number not in self._alive:
                self._take(tensor, Made(tensor.untyped_storage().nbytes(), key, position, self.scopes.current.path))
        return made

    def _take(self, tensor: torch.Tensor, made: Made) -> None:
        position, number, storage = len(self.tensors), _number(tensor), tensor.untyped_storage()
        assert number is not None
        self.tensors.append(made)
        self.events.append(position)
        self._alive[number] = position

        def give_back(_: Any) -> None:
            self.events.append(position)
            del self._alive[number]

        self._watches.append(weakref.ref(storage, give_back))

    def _left(self, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        """The results of a module that is treated as one operation belong to the module."""
        if leaf_rule(scope.module) is None:
            return
        key = self.scopes.current.next_key(type(scope.module).__name__)
        for position, tensor in enumerate(tensors_in(made)):
            known = self._alive.get(_number(tensor) or 0)
            if known is not None:
                self.tensors[known].key, self.tensors[known].position = key, position


def _number(tensor: torch.Tensor) -> int | None:
    """The number of the memory that a tensor is in, None for a sparse one, which has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


class PeakMemory:
    """The peak memory of the model that was analysed, and of the smaller ones that removals leave.

    No model is made: the lifetimes of the original's tensors are taken, and the sizes that its dimensions will have.

    full: the peak of the original, which may hold tensors longer than the graph that was analysed.
    """

    def __init__(self, findings: Findings) -> None:
        captured = findings.captured
        self._hooks = captured.needs_hooks
        self.full = _peak(findings.model, findings.inputs)
        self._findings = findings
        self._lifetimes = lifetimes_of(captured, findings.inputs, findings.model)
        known = {k: made for o in findings.observed.observations.values() for k, made in o.outputs.items()}
        self._vectors = [_vectors(known, tensor) for tensor in self._lifetimes.tensors]

    def of(self, removal: Removal | None = None) -> int:
        """The peak in bytes, with a removal that of the smaller model."""
        whole = [tensor.bytes for tensor in self._lifetimes.tensors]
        if removal is None:
            return self._lifetimes.peak(whole)
        if self._hooks:  # the outputs of layers are filled up to their size of before
            return self._lifetimes.peak(whole, dict(self._before_filling(removal)))
        return self._lifetimes.peak(
            [_after(vectors, size, removal) for vectors, size in zip(self._vectors, whole, strict=True)]
        )

    def _before_filling(self, removal: Removal) -> Iterator[tuple[int, int]]:
        """The tensors that hooks fill up: the position of the result, and the bytes of what is copied into what."""
        shrunk = {path: v for path, _, v in outputs_behind_hooks(self._findings) if removal.kept(v) is not None}
        for position, tensor in enumerate(self._lifetimes.tensors):
            if tensor.module in shrunk:
                vector = shrunk[tensor.module]
                yield position, tensor.bytes + tensor.bytes * removal.count(vector) // vector.size


def _vectors(known: Mapping[Key, Sequence[Any]], tensor: Made) -> tuple[Vector, ...]:
    """The dimensions of a tensor, none if they are not known."""
    results = known.get(tensor.key, ())
    return tuple(results[tensor.position].vectors) if tensor.position < len(results) else ()


def _after(vectors: Sequence[Vector], size: int, removal: Removal) -> int:
    """The bytes of a tensor after a removal."""
    before = math.prod(vector.size for vector in vectors)
    return size * math.prod(map(removal.count, vectors)) // before if before else size
