"""Watching a symbolic trace for what a graph cannot express, such as a read of `self.training`.

`watching` replaces a few attributes of torch while the lock of `process_state.tracing` is held, and reports to a
`Listener`. Calls of other threads are not reported.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd import grad_mode
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.proxy import Proxy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.containers import items_of
from fxprune.capture.places import TORCH, users_line
from fxprune.capture.seeds import SETS_THE_STATE, seeded, watching_seeds

_CONTEXTS = (
    *(grad_mode.no_grad, grad_mode.enable_grad, grad_mode.inference_mode, grad_mode.set_grad_enabled),
    *(torch.amp.autocast_mode.autocast, saved_tensors_hooks, TorchFunctionMode),
)
_grad_enabled = torch.is_grad_enabled
_inference_mode_enabled = torch.is_inference_mode_enabled
_autocast_enabled = torch.is_autocast_enabled
_PLAIN = (int, float, str, bool, bytes)
_QUESTIONS = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")


def codes_of_functions() -> frozenset[types.CodeType]:
    """The code of `forward` of every `torch.autograd.Function` that is defined, for a trace to find in the stack."""
    found, todo = set(), [torch.autograd.Function]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        found.add(getattr(kind.forward, "__code__", None))
    return frozenset(code for code in found if code is not None)


class Listener(Protocol):
    """The receiver of what `watching` sees."""

    def training_read(self) -> None:
        """The flag `training` of a module was read."""

    def entered(self, name: str) -> None:
        """A context such as `no_grad` was entered."""

    def left(self) -> None:
        """The context that was entered last was left."""

    def happened(self, why: str) -> None:
        """Something happened that a graph cannot express; `why` follows on "its forward"."""


class FrozenStateError(Exception):
    """An operation on a concrete tensor would have changed the original model. Internal: the trace begins again."""


@contextlib.contextmanager
def watching(listener: Listener, members: Set[int], storages: Set[int], parameters: Set[int]) -> Iterator[None]:
    """Report to a listener what happens in this thread.

    Args:
        members: ids of the modules whose attributes are watched.
        storages: the storages of all tensors of the original, which no operation may change.
        parameters: the storages of parameters and buffers. The trace knows them as nodes; an operation on the concrete
            tensor would become a constant.
    """
    thread = threading.get_ident()

    def here() -> bool:
        return threading.get_ident() == thread

    with contextlib.ExitStack() as stack:
        _watch_training(stack, listener, here)
        _watch_assignments(stack, listener, here, members)
        _watch_functions(stack, listener, here)
        _watch_contexts(stack, listener, here)
        _watch_questions(stack, listener, here)
        stack.enter_context(watching_seeds(lambda how: listener.happened(f"{SETS_THE_STATE} ({how})"), here))
        stack.enter_context(_ConcreteOperations(listener, storages, parameters))
        yield


NOT_KEPT = "an exported graph does not keep this"
CHANGES_STATE = f"{NOT_KEPT}: forward changes"
OTHER_SIZE = "when a size is another one"


def changes_state(lost: Iterable[str]) -> bool:
    """True if one of these sentences is about what forward changes on the same sizes too: a second call may read it."""
    return any(text.startswith(CHANGES_STATE) and not text.endswith(OTHER_SIZE) for text in lost)


@contextlib.contextmanager
def watching_export(model: nn.Module, lost: list[str]) -> Iterator[None]:
    """Append to `lost` what the forward of a model does while it is exported, and the exported graph does not keep."""
    thread, listener = threading.get_ident(), _Lost(lost)
    with contextlib.ExitStack() as stack:
        _watch_assignments(stack, listener, lambda: threading.get_ident() == thread, {id(m) for m in model.modules()})
        _watch_functions(stack, listener, lambda: threading.get_ident() == thread)
        stack.enter_context(watching_seeds(listener.seeded, lambda: threading.get_ident() == thread))
        numbers = random_state()
        yield
        if seeded() and not any(SETS_THE_STATE in text for text in lost):
            lost.append(f"{NOT_KEPT}: forward {SETS_THE_STATE}")
        if numbers != random_state():
            lost.append(
                f"{NOT_KEPT}: forward draws random numbers of Python or numpy, which are constants of the graph"
            )


class _Lost:
    """The listener of an export, which runs forward itself. Assignments by torch are not noted."""

    def __init__(self, lost: list[str]) -> None:
        self.lost = lost

    def training_read(self) -> None:
        """Nothing: the record says that the mode is fixed."""

    def entered(self, name: str) -> None:
        """Nothing: exported graphs keep contexts."""

    def left(self) -> None:
        """Nothing: exported graphs keep contexts."""

    def happened(self, why: str) -> None:
        """Note what the user's code did."""
        if not sys._getframe(2).f_code.co_filename.startswith(TORCH):
            self._note(why)

    def seeded(self, how: str) -> None:
        """Note what the user's code did to torch's generator."""
        self._note(f"{SETS_THE_STATE} ({how})")

    def _note(self, why: str) -> None:
        text = f"{NOT_KEPT}: forward {why} ({users_line()})"
        if text not in self.lost:
            self.lost.append(text)


def replace_attribute(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack is closed."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    if before is missing:
        stack.callback(delattr, owner, name)
    else:
        stack.callback(setattr, owner, name, before)


def _watch_training(stack: contextlib.ExitStack, listener: Listener, here: Callable[[], bool]) -> None:
    """Makes `training` a property of all modules. Its value stays in the module's `__dict__`."""

    def read(module: nn.Module) -> Any:
        if here():
            listener.training_read()
        try:
            return module.__dict__["training"]
        except KeyError:
            raise AttributeError("training") from None

    def write(module: nn.Module, value: Any) -> None:
        module.__dict__["training"] = value

    replace_attribute(stack, nn.Module, "training", property(read, write))


def _watch_assignments(
    stack: contextlib.ExitStack, listener: Listener, here: Callable[[], bool], members: Set[int]
) -> None:
    set_attribute, delete_attribute = nn.Module.__setattr__, nn.Module.__delattr__

    def assigned(module: nn.Module, name: str, value: Any) -> None:
        if id(module) in members and here() and not name.startswith("_tensor_constant"):
            listener.happened(f"assigns to self.{name}")
        set_attribute(module, name, value)

    def deleted(module: nn.Module, name: str) -> None:
        if id(module) in members and here():
            listener.happened(f"deletes self.{name}")
        delete_attribute(module, name)

    replace_attribute(stack, nn.Module, "__setattr__", assigned)
    replace_attribute(stack, nn.Module, "__delattr__", deleted)


def _watch_functions(stack: contextlib.ExitStack, listener: Listener, here: Callable[[], bool]) -> None:
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if here() and any(isinstance(leaf, (Proxy, torch.Tensor)) for leaf in pytree.tree_leaves((args, kwargs))):
            listener.happened(f"applies the autograd.Function {cls.__name__}")
        return original.__get__(None, cls)(*args, **kwargs)

    replace_attribute(stack, torch.autograd.Function, "apply", classmethod(apply))


def _watch_contexts(stack: contextlib.ExitStack, listener: Listener, here: Callable[[], bool]) -> None:
    for kind in _CONTEXTS:
        replace_attribute(stack, kind, "__enter__", _entering(kind, listener, here))
        replace_attribute(stack, kind, "__exit__", _leaving(kind, listener, here))


def _entering(kind: Any, listener: Listener, here: Callable[[], bool]) -> Callable[..., Any]:
    enter = kind.__enter__

    def entered(context: Any, *args: Any) -> Any:
        if here():
            listener.entered(type(context).__name__.removeprefix("_").removesuffix("_hook"))
        return enter(context, *args)

    return entered


def _leaving(kind: Any, listener: Listener, here: Callable[[], bool]) -> Callable[..., Any]:
    leave = kind.__exit__

    def left(context: Any, *args: Any) -> Any:
        if here():
            listener.left()
        return leave(context, *args)

    return left


def _watch_questions(stack: contextlib.ExitStack, listener: Listener, here: Callable[[], bool]) -> None:
    for name in _QUESTIONS:
        replace_attribute(stack, torch, name, _asking(getattr(torch, name), name, listener, here))


def _asking(function: Any, name: str, listener: Listener, here: Callable[[], bool]) -> Callable[..., Any]:
    def asked(*args: Any) -> Any:
        if here() and not sys._getframe(1).f_code.co_filename.startswith(TORCH):
            listener.happened(f"asks torch.{name}()")
        return function(*args)

    return asked


class _ConcreteOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations that run on concrete tensors during a trace, whose results would be constants."""

    def __init__(self, listener: Listener, storages: Set[int], parameters: Set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.listener, self.storages, self.parameters = listener, storages, parameters

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.listener.happened(f"draws random numbers ({func.overloadpacket.__name__})")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            changed = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in pytree.tree_leaves(value):
                if not isinstance(tensor, torch.Tensor):
                    continue
                place = storage_of(tensor)
                if changed and place in self.storages:
                    self.listener.happened(f"changes a tensor of the model in place ({func.overloadpacket.__name__})")
                    raise FrozenStateError(str(func))
                if place in self.parameters:
                    self.listener.happened(f"computes with a parameter that it does not read as an attribute ({func})")
        return func(*args, **kwargs)


def storage_of(tensor: torch.Tensor) -> int:
    """A number for the memory of a tensor, the same for all its views; 0 for a tensor without such memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def torch_state() -> tuple[Any, ...]:
    """The settings of torch that contexts change, as far as torch tells them."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    return (
        *(_grad_enabled(), _inference_mode_enabled(), torch.is_anomaly_enabled()),
        *(_autocast_enabled(kind) for kind in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")),
        *(torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        *(torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        *(cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        *(cuda.cudnn_sdp_enabled(), cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
    )


def random_state() -> tuple[Any, ...]:
    """The state of the random numbers of Python and numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate(), None, None
    _, keys, position, *_ = numpy.random.get_state()
    return random.getstate(), keys.tobytes(), position


def contents(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, list[Any]]]:
    """The attributes of modules: path -> attribute -> its value, and the values inside it."""
    seen: set[int] = set()
    return {
        path: {
            name: [value] if value is None or type(value) in _PLAIN else list(_inside(value, 4, seen))
            for name, value in module.__dict__.items()
        }
        for path, module in modules.items()
    }


def _inside(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    yield value
    if depth == 0 or isinstance(value, (nn.Module, torch.Tensor, type, str, bytes)):
        return
    parts: Iterable[Any] = ()
    if isinstance(value, dict):
        parts = [*dict.keys(value), *dict.values(value)]
    elif isinstance(value, (list, tuple, deque)):
        parts = items_of(value)
    elif isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, set):
        parts = set.__iter__(value)
    elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value) and id(value) not in seen:
        seen.add(id(value))
        parts = vars(value).values()
    for part in parts:
        yield from _inside(part, depth - 1, seen)


def changed(before: list[Any] | None, after: list[Any]) -> bool:
    """True if an attribute holds other values than before."""
    if before is None or len(before) != len(after):
        return True
    return not all(
        a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b) for a, b in zip(before, after, strict=True)
    )


_PLAIN = (int, float, str, bool, bytes)
