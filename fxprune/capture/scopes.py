"""Scopes: which module is running, and a key for each operation, by which another run of the model finds it again."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture.code import is_torch
from fxprune.capture.fake_operations import batch_norm, batch_norm_in_jvp
from fxprune.capture.opened_functions import opened
from fxprune.capture.process_state import module_hooks
from fxprune.capture.thread_state import of_no_level, outside_levels

Key = tuple[str, int, str, int]
"""An operation of a run: the name of its scope, which run of that scope it was, its own name, and which call of that
name in that run. Both counts begin with 1."""

ATTENTION = "scaled_dot_product_attention"
_SAME_OPERATION = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}


@dataclass(eq=False)
class Scope:
    """One run of a node or of a module.

    name: "%node", or the path of the module; inside a function such as `einsum` followed by "|einsum".
    number: which run of that name it is, from 1.
    module: the module that runs, None for a node.
    outer: the scope around it, None around a node.
    operations: how often each operation has run in it.
    """

    name: str
    number: int
    module: nn.Module | None = None
    outer: Scope | None = None
    operations: Counter[str] = field(default_factory=Counter)

    @property
    def path(self) -> str:
        """The name without the function: "%node" or the path of a module."""
        return self.name.partition("|")[0]

    @property
    def depends_on_sizes(self) -> bool:
        """True if the operations in this scope may be different ones for other sizes."""
        return "|" in self.name

    def next_key(self, operation: str) -> Key:
        """The key of the next operation of this name. Counts it, so call it once for every operation that runs.

        >>> scope = Scope("conv", 1)
        >>> scope.next_key("aten::relu"), scope.next_key("aten::relu")
        (('conv', 1, 'aten::relu', 1), ('conv', 1, 'aten::relu', 2))
        """
        operation = _SAME_OPERATION.get(operation, operation)
        self.operations[operation] += 1
        return self.name, self.number, operation, self.operations[operation]


class Scopes:
    """The stack of the scopes that are running.

    Operations are counted in each scope alone, so that an operation which is added or left out in one scope changes no
    key in another.

    between_modules: called before a module's forward begins, and after it returns if its code is not torch's.
    on_enter: called with the scope of a module when its forward begins.
    on_leave: called with the scope, the arguments, the keyword arguments and the result when the forward returns.
    on_attention: called with the key, the arguments by name and the result of `scaled_dot_product_attention`. The scale
        is among the arguments, also where attention computes it from the width of the queries.
    on_composite: called with the key and the result of any other function whose operations depend on the sizes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._names: dict[int, tuple[str, nn.Module]] = {}
        self.follow(module, "")
        self._entered: Counter[str] = Counter()
        self.stack: list[Scope] = [Scope("", 0)]
        self.between_modules: Callable[[], None] = lambda: None
        self.on_enter: Callable[[Scope], None] = lambda scope: None
        self.on_leave: Callable[[Scope, Any, Any, Any], None] = lambda scope, args, kwargs, made: None
        self.on_attention: Callable[[Key, dict[str, Any], Any], None] = lambda key, named, made: None
        self.on_composite: Callable[[Key, Any], None] = lambda key, made: None

    def follow(self, module: nn.Module, path: str) -> None:
        """Watch `module` and its submodules instead of those before. `path` is its name in the model."""
        self._names = {id(m): (f"{path}.{n}".strip("."), m) for n, m in module.named_modules()}

    def restart(self) -> None:
        """Set the counts of runs back to zero, before another run of the model."""
        self._entered.clear()

    @property
    def current(self) -> Scope:
        """The innermost scope."""
        return self.stack[-1]

    def node(self, name: str) -> Scope:
        """Begin a node of the graph, outside of all modules. Returns its scope."""
        self.stack = [self._scope(f"%{name}", None, None)]
        return self.current

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Run a function in a scope of its own, inside the current one."""
        self.stack.append(self._scope(f"{self.current.name}|{name}", self.current.module, self.current))
        try:
            yield
        finally:
            self.stack.pop()

    def _scope(self, name: str, module: nn.Module | None, outer: Scope | None) -> Scope:
        self._entered[name] += 1
        return Scope(name, self._entered[name], module, outer)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the stack up to date while modules run."""
        with module_hooks(self._before, self._after), _Composites(self):
            yield

    def _before(self, module: nn.Module, args: Any) -> None:
        known = self._names.get(id(module))
        if known is not None:
            self.stack.append(self._scope(*known, self.current))
            self.between_modules()
            self.on_enter(self.current)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        if id(module) in self._names and self.current.module is module:
            scope = self.stack.pop()
            if not is_torch(type(module).__module__):
                self.between_modules()
            with whole_batches((args, kwargs, made)) as whole:
                self.on_leave(scope, *whole)


_COMPOSITE = {
    *(torch.functional.einsum, F.linear, torch.matmul, torch.Tensor.matmul),
    *(torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
    *(torch.ops.aten.einsum.default, torch.ops.aten.linear.default, torch.ops.aten.matmul.default),  # exported
}
_ATTENTION_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class _Composites(TorchFunctionMode):
    """Gives a scope of its own to every function whose operations depend on the sizes.

    Products of matrices reshape or copy their factors depending on the strides; `einsum` has a special case for
    dimensions of size 1; attention chooses a kernel. Also calls `on_attention` and
    `on_composite`. Inference mode is like `no_grad`, and copies of tensors are operations.
    """

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()
        self.scopes = scopes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # forward has entered it: there operations are not made of smaller ones
            with torch.inference_mode(False), torch.no_grad():
                return self.__torch_function__(func, types, args, kwargs)
        if func is torch.Tensor.__deepcopy__:
            return _deep_copy(*args, **kwargs)
        if getattr(func, "__self__", None) is torch.Tensor.data and func.__name__ == "__get__":
            return args[0].detach()  # the same numbers by an operation, which `.data` is not
        body = opened(func, self.scopes.current.module)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if func is F.batch_norm and (normed := batch_norm(*args, **kwargs)) is not None:
            return normed
        if func is F.batch_norm and (normed := batch_norm_in_jvp(*args, **kwargs)) is not None:
            return normed
        if func not in _COMPOSITE:
            return func(*args, **kwargs)
        name = func.__name__.partition(".")[0]
        key = self.scopes.current.next_key(f"{name}()")
        with self.scopes.inside(name):
            made = func(*args, **kwargs)
        with whole_batches(made) as whole:
            self.scopes.on_composite(key, whole)
        return made

    def _attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        key = self.scopes.current.next_key(ATTENTION)
        with self.scopes.inside(func.__name__):
            made = func(*args, **kwargs)
        named = {**dict(zip(_ATTENTION_ARGUMENTS, args, strict=False)), **kwargs}
        if named.get("scale") is None:
            named["scale"] = named["query"].shape[-1] ** -0.5
        with whole_batches((named, made)) as whole:
            self.scopes.on_attention(key, *whole)
        return made


def _deep_copy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """A copy of a tensor that forward copies with `copy.deepcopy`, by an operation that has a rule.

    Torch gives an empty tensor a copy of the memory (`set_`), which no rule follows; fake tensors have no memory, and
    those that know their numbers would write where nothing is.
    """
    if type(tensor) not in (torch.Tensor, FakeTensor) or not tensor.is_leaf:
        return tensor.__deepcopy__(memo)  # type: ignore[no-untyped-call, no-any-return]
    if id(tensor) not in memo:
        memo[id(tensor)] = made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        if type(tensor) is torch.Tensor:
            made.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
    return cast(torch.Tensor, memo[id(tensor)])


@contextlib.contextmanager
def whole_batches(value: Any) -> Iterator[Any]:
    """Leaves `vmap` and `grad`: a nested value in which their tensors are those that the operations compute with."""
    if torch._C._functorch.maybe_current_level() is not None:
        value = pytree.tree_map_only(torch.Tensor, of_no_level, value)
    with outside_levels():
        yield value
