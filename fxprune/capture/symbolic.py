"""One symbolic trace of a model, which also says where a graph would not be faithful to the model.

The `Tracer` keeps operations in place (`y += h`), reads buffers as nodes, and stores in each node the line of the
user's code. What a graph cannot express becomes a `Reason` for the innermost module whose forward does it.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Proxy

from fxprune.capture.places import SOURCE, TORCH, line_of, users_line
from fxprune.capture.process_state import same_random_state, tracing
from fxprune.capture.random_operations import drawn_by
from fxprune.capture.seeds import SETS_THE_STATE, UNSEEDED, seeded
from fxprune.capture.symbols import IN_PLACE, Buffer, Symbol
from fxprune.capture.trace_watch import (
    changed,
    codes_of_functions,
    contents,
    random_state,
    storage_of,
    torch_state,
    watching,
)
from fxprune.capture.traced_calls import TracedCall, TracedConstant
from fxprune.ops.leaves import leaf_rule


@dataclass(frozen=True)
class Reason:
    """Why a module stays whole.

    module: the path of the module, "" for the model. why: what its forward does. source: the line that does it.
    """

    module: str
    why: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.source})" if self.source else self.why


@dataclass(eq=False)
class Trace:
    """The outcome of one trace.

    graph: the graph; None if the trace failed with `error`.
    reasons: what the graph does not express, by the path of the module to keep whole: the first for each module.
    reads: the paths of the modules whose forward reads `training` -> the line.
    events: for each of these modules, the nodes that it made, in a form that can be compared with another trace.
    failed_in: the paths of the modules that ran when the trace failed, the innermost last; () if only the model ran.
    """

    graph: fx.Graph | None = None
    error: Exception | None = None
    reasons: dict[str, Reason] = field(default_factory=dict)
    reads: dict[str, Reason] = field(default_factory=dict)
    events: dict[str, list[Any]] = field(default_factory=dict)
    failed_in: tuple[str, ...] = ()


class Tracer(fx.Tracer):
    """A `torch.fx.Tracer` that keeps some modules whole, and notes what a graph cannot express.

    Other threads may run modules while it traces; their calls are not traced.
    """

    proxy_buffer_attributes = True

    def __init__(self, whole: Set[str] = frozenset(), constants: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__()
        self.constants = constants
        self._thread = threading.get_ident()
        self.whole = whole
        self.made = Trace()
        self.calls: list[TracedCall] = []
        self.contexts: list[tuple[str, Reason]] = []
        self.numbers: tuple[Any, ...] = random_state()
        self.functions = codes_of_functions()

    # -- what happens ---------------------------------------------------------------------------------

    def happened(self, why: str) -> None:
        """Note something that a graph cannot express, for the module whose forward runs."""
        self._note(Reason(self.calls[-1].path if self.calls else "", f"its forward {why}", users_line()))

    def training_read(self) -> None:
        """Note that the forward that runs reads `training`. It matters if the other mode gives another graph."""
        path = self.calls[-1].path if self.calls else ""
        self.made.reads.setdefault(path, Reason(path, "its forward reads self.training", users_line()))

    def entered(self, name: str) -> None:
        """Begin a context. It is noted where a node is made in it."""
        path = self.calls[-1].path if self.calls else ""
        self.contexts.append((path, Reason(path, f"its forward enters the context {name}", users_line())))

    def left(self) -> None:
        """End the context that began last."""
        if self.contexts:
            self.contexts.pop()

    def _note(self, reason: Reason) -> None:
        self.made.reasons.setdefault(reason.module, reason)

    def _compare_state(self) -> None:
        """Note contexts in which a node is made."""
        for _, reason in self.contexts:
            self._note(reason)
        if self.calls and not self.contexts and torch_state() != self.calls[-1].state:
            self.happened("changes a setting of torch")

    def _compare_numbers(self) -> None:
        """Note seeds of torch, and random numbers of Python or numpy that were drawn, since the last comparison."""
        if seeded():
            torch.default_generator.manual_seed(UNSEEDED)
            self._note(Reason(self.calls[-1].path, f"its forward {SETS_THE_STATE}"))
        now = random_state()
        if now != self.numbers:
            self.numbers = now
            self._note(Reason(self.calls[-1].path, "its forward draws random numbers (of Python or numpy)"))

    # -- tracing ----------------------------------------------------------------------------------------

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a model; `made` has the rest."""
        self.calls = [TracedCall("", torch_state())]
        try:
            graph = super().trace(root, concrete_args)
            self._compare_numbers()
        finally:
            self.made.events[""] = self.calls[0].events
        return graph

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """The forward to trace and its arguments. Those in `constants` are their values; the graph checks them."""
        forward, symbols = super().create_args_for_root(*args, **kwargs)
        return forward, [self._constant_or_symbol(symbol) for symbol in symbols]

    def _constant_or_symbol(self, symbol: Any) -> Any:
        name = str(symbol.node.target) if isinstance(symbol, Proxy) else ""
        if name not in self.constants:
            return symbol
        value, message = self.constants[name], f"the graph was traced with {name}={self.constants[name]!r}"
        # also for None: the code of a graph with torch's `_assert_is_none` ends all later traces, see `tracing`
        self.create_proxy("call_function", torch._assert, (symbol == value, message), {})
        return value

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True if a module becomes one node: a layer of torch, one with a rule of its own, or one to keep whole."""
        if module_qualified_name in self.whole or leaf_rule(m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """The result of a module: a node of the graph; in another thread, the result of its forward."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self._compare_state()
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._compare_numbers()  # those that were drawn before belong to the module around it
        call = TracedCall(path, torch_state())
        self.calls.append(call)
        try:
            result = super().call_module(m, forward, args, kwargs)
            self._compare_numbers()
            call.events.append(("result", call.numbered(result)))
            return result
        except BaseException:
            if not self.made.failed_in:
                self.made.failed_in = tuple(c.path for c in self.calls)
            raise
        finally:
            self.calls.pop()
            self.made.events.setdefault(path, []).extend(call.events)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The value of an attribute: a node of the graph for a tensor; in another thread, the value itself."""
        if threading.get_ident() != self._thread:
            return attr_val
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        if isinstance(found, Proxy) and not isinstance(attr_val, nn.Parameter):
            return Buffer(found.node, self, attr_val)
        return found

    def proxy(self, node: fx.Node) -> Proxy:
        """The symbol of a node."""
        return Symbol(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        """Raises `TraceError`, since a graph cannot decide by numbers."""
        self._decides(obj.node)
        return super().to_bool(obj)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Raises `TraceError`, since the number of values is unknown."""
        self._decides(obj.node)
        return super().iter(obj)

    def _decides(self, node: fx.Node) -> None:
        """Note a decision by numbers of parameters or buffers alone, which the module could go on making by itself."""
        if not any(n.op == "placeholder" for n in _ancestors(node)):
            self.happened("decides by the numbers in its tensors")

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node, with the line that made it."""
        node = super().create_node(*args, **kwargs)
        if isinstance(node.type, str):  # an annotation that is not evaluated; a graph with one cannot be pickled
            node.type = None
        self._find_source(node)
        self._compare_state()
        if self.calls and self.calls[-1].path and node.op in ("call_function", "call_method"):
            drawn = drawn_by(node.target, node.args, node.kwargs)
            if drawn:  # at the root it stays a node, which draw in each call
                self.happened(f"draws random numbers ({drawn})")
        event: Any = (node.op, node.target)
        if node.op == "get_attr":
            event = (node.op, TracedConstant(_value_of(self.root, str(node.target))))
        for call in self.calls:
            numbered = (call.numbered(node.args), call.numbered(node.kwargs))
            call.events.append((event, numbered, call.numbered(node)))
        return node

    def _find_source(self, node: fx.Node) -> None:
        """Store the user's line, and look in the stack for an `autograd.Function` that was not seen before."""
        frame: types.FrameType | None = sys._getframe(2)
        own = (Tracer.call_module.__code__, Tracer.getattr.__code__, IN_PLACE)
        while frame is not None and (frame.f_code.co_filename.startswith(TORCH) or frame.f_code in own):
            self._look_at(frame.f_code)
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename != __file__:  # otherwise code of torch called the layer
            node.meta[SOURCE] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        while frame is not None and frame.f_code not in (Tracer.call_module.__code__, Tracer.trace.__code__):
            self._look_at(frame.f_code)
            frame = frame.f_back

    def _look_at(self, code: types.CodeType) -> None:
        if code in self.functions:
            self.happened("applies an autograd.Function")


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and all nodes that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        for before in todo.pop().all_input_nodes:
            if before not in found:
                found.add(before)
                todo.append(before)
    return found


def _value_of(root: nn.Module, name: str) -> Any:
    """The attribute at a dotted path, read past `__getattr__`, which gives symbols during a trace."""
    value: Any = root
    for part in name.split("."):
        places = (value.__dict__, value._parameters, value._buffers, value._modules)
        value = next((place[part] for place in places if part in place), None)
    return value


def trace_once(
    model: nn.Module, tensors: Iterable[torch.Tensor], whole: Set[str], constants: Mapping[str, Any]
) -> Trace:
    """One trace of a model.

    Args:
        model: a copy of the model, whose attributes may change.
        tensors: all tensors of the original. No operation changes them.
        whole: the paths of the modules that become one node.
        constants: arguments of forward that are no symbols: name -> value.
    """
    tracer = Tracer(whole, constants)
    modules = dict(model.named_modules())
    named = [t for m in modules.values() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    parameters = {storage_of(t) for t in named} - {0}
    storages = {storage_of(t) for t in tensors} - {0}
    before = contents(modules)
    made = tracer.made
    watch = watching(tracer, {id(m) for m in modules.values()}, storages, parameters)
    with tracing(), same_random_state(), same_python_numbers(), watch:
        try:
            made.graph = tracer.trace(model)
        except Exception as error:
            made.error = error
    _compare_attributes(made, modules, before, whole)
    return made


def _compare_attributes(
    made: Trace, modules: Mapping[str, nn.Module], before: Mapping[str, Mapping[str, list[Any]]], whole: Set[str]
) -> None:
    """Note attributes that are not what they were. The module that was traced into gets the reason."""
    for path, now in contents(modules).items():
        for name, values in now.items():
            if name.startswith("_tensor_constant") or not changed(before[path].get(name), values):
                continue
            holder = next(p for p in _and_parents(path) if p not in whole and (p in made.events or not p))
            why = f"changes self.{name}" if holder == path else f"changes {path}.{name}"
            made.reasons.setdefault(
                holder, Reason(holder, f"its forward {why}", line_of(type(modules[holder]).forward))
            )


def _and_parents(path: str) -> Iterator[str]:
    """A path and the paths of all modules around it, from the inside."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


@contextlib.contextmanager
def same_python_numbers() -> Iterator[None]:
    """Restores the random numbers of Python and numpy."""
    numpy: Any = sys.modules.get("numpy")
    python, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)
