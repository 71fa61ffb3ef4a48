"""The observer of one forward, which makes its flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.fake_operations import run
from fxprune.capture.places import users_line
from fxprune.capture.process_state import module_hooks
from fxprune.capture.values import tensors_in
from fxprune.depth.calls import Calls, adds
from fxprune.depth.flow import Flow, ModuleCall, Operation


def flow_of(model: nn.Module, forward: Callable[[], Any]) -> Flow:
    """The flow of a forward of the model, which `forward` runs."""
    flow = Flow()
    mode = _Following(model, flow)
    with torch.no_grad(), module_hooks(mode.before, mode.after), mode:
        made = forward()
    flow.results = tuple(v for tensor in tensors_in(made) for v in mode.values(tensor))
    return flow


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode that notes operations and values."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow, self.calls = flow, Calls(model)
        self._owner = {id(b): path for path, m in model.named_modules() for b in m._buffers.values() if b is not None}
        self._running: list[ModuleCall] = []
        self._known: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._alive: list[Any] = []
        self._count = 0
        self._names: dict[int, list[str]] = {}
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append(name)
        self._foreign = set(self._names)
        flow.kernels = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim > 1}

    def _new(self) -> int:
        self._count += 1
        return self._count

    def newest(self, tensor: torch.Tensor) -> int:
        """The value of a tensor: of what was written last into its memory."""
        return max(self.values(tensor))

    def values(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """The values that who reads this tensor now reads."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = self._new()
            if id(tensor) in self._names:
                self.flow.state[self._count] = tuple(self._names[id(tensor)])
            self._foreign.add(id(tensor))
            self._alive.append(tensor)
        known = self._known[id(tensor)]
        written = self._written.get(_memory(tensor), 0)
        return (known, written) if written > known else (known,)

    def before(self, module: nn.Module, args: Any) -> None:
        """Note a call of a module, before its forward."""
        if self.calls.enter(module):
            outer = self._running[-1].number if self._running else None
            call = ModuleCall(self.calls.stack[-1][0], len(self.flow.calls), outer, positional=len(args))
            for number, value in enumerate(args):
                if isinstance(value, torch.Tensor):
                    call.arguments[number] = self.newest(value), value.is_floating_point()
            self.flow.calls.append(call)
            self._running.append(call)

    def after(self, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        """Note the keyword arguments and the result of a call."""
        if self.calls.leave(module):
            call = self._running.pop()
            call.keywords = bool(kwargs)
            for name, value in (kwargs or {}).items():
                if isinstance(value, torch.Tensor):
                    call.arguments[name] = self.values(value)[0], value.is_floating_point()
            call.form = self._form(made, call.parts)
            if isinstance(made, torch.Tensor) and args and isinstance(args[0], torch.Tensor):
                call.reshapes = made.shape != args[0].shape

    def _form(self, made: Any, parts: set[str]) -> Any:
        if isinstance(made, torch.Tensor):
            return self.newest(made)
        if made is None:
            return None
        parts.add(type(made).__name__)
        return [self._form(part, parts) for part in made] if type(made) in (tuple, list) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        entering = tensors_in([list(args), kwargs or {}])
        reads = tuple(dict.fromkeys(v for tensor in entering for v in self.values(tensor)))
        operands = tuple(self.values(a) if isinstance(a, torch.Tensor) else () for a in args[:2])
        written = _written_arguments(func, args, kwargs or {})
        made = run(func, args, kwargs or {})
        outputs = tensors_in(made)
        self._alive.append((entering, outputs))  # kept alive, so that no other tensor gets the same id
        number = len(self.flow.operations)
        writes = []
        for tensor in [*outputs, *(t for t in written if all(t is not o for o in outputs))]:
            value = self._new()
            self._known[id(tensor)] = value
            self.flow.maker[value] = number
            if tensor.is_floating_point():
                self.flow.floating.add(value)
            writes.append(value)
        for tensor in written:
            self._written[_memory(tensor)] = self._known[id(tensor)]
        calls = tuple(call.number for call in self._running)
        operation = Operation(func._schema.name, calls, reads, tuple(writes), operands)
        if adds(func, args):
            operation.addition, operation.line = self.calls.next_addition(), users_line()
            operation.keeps = tuple(_like(made, other) for other in (args[1], args[0]))
            if "sub" in operation.name:
                operation.keeps = (False, operation.keeps[1])
        self.flow.operations.append(operation)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            self.flow.decisions.add(number)
        if self._writes_elsewhere(written):
            self.flow.always.add(number)
        return made

    def _writes_elsewhere(self, written: Iterable[torch.Tensor]) -> bool:
        """True for what is written into a tensor that was there before.

        Not for a buffer that a module itself keeps up to date, as a batch norm does.
        """
        here = self.calls.stack[-1][0] if self.calls.stack else ""
        foreign = [t for t in written if id(t) in self._foreign]
        return any(self._owner.get(id(t)) != here for t in foreign)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _like(made: torch.Tensor, operand: torch.Tensor) -> bool:
    return made.shape == operand.shape and made.dtype == operand.dtype


def _written_arguments(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes into."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    named = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return tensors_in([named.get(name) for name in changed])
