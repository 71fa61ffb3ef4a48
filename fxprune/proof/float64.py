"""Running a model in float64 and evaluation mode, with some slots of its tensors set to zero.

Each layer is copied to float64 when it runs, and the copy is dropped afterwards. So the proof needs little memory, and
is as precise for float16 weights as for float64 ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.captured import WHOLE_MODEL
from fxprune.capture.module_copy import copy_module
from fxprune.capture.tensors import Tensors
from fxprune.capture.walk import Run
from fxprune.ops.normalization import default_eps
from fxprune.proof.masked_reference import zero_slots
from fxprune.proof.operations import Operations, Watcher

BLOCK = 1 << 21
"""The number of elements of a large linear layer's weight that are in float64 at a time."""


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, in float64 if its type is floating."""
    return tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


def in_float64(values: Any) -> Any:
    """A nested value with every tensor replaced by a copy: see `to_float64`."""
    return pytree.tree_map_only(torch.Tensor, to_float64, values)


class Float64Run(Run):
    """Runs a graph in float64 and evaluation mode.

    Every module runs as a copy, which is dropped when it has run. The model is not changed.

    zeroed: name of a parameter or buffer -> dimension -> the slots that are zero in the copy.
    operations: a mode that sees, and may replace, all operations of the run.
    numbers: a watcher of what runs inside modules.
    unrounded: name of a parameter -> its numbers before they were rounded to its type. Where the parameter is that
        rounding, the copy gets the exact number, so that the rounding does not count as an error.
    """

    def __init__(
        self,
        graph: fx.Graph,
        module: nn.Module,
        zeroed: Mapping[str, Mapping[int, Any]] = MappingProxyType({}),
        operations: Operations | None = None,
        *,
        unrounded: Mapping[str, torch.Tensor] | None = None,
        numbers: Watcher | None = None,
    ) -> None:
        super().__init__(graph, module)
        self.numbers = numbers
        self.zeroed = zeroed
        self.operations = operations
        self.unrounded = unrounded or {}

    def _tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        copied = to_float64(tensor)
        zero_slots(copied, self.zeroed.get(name, {}))
        exact = self.unrounded.get(name)
        if exact is not None:  # see `unrounded`
            rounded = tensor.detach().clone().copy_(exact)
            copied = torch.where(tensor == rounded, exact, copied)
        return copied

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node. Its operations run under the mode `operations`."""
        if self.operations is None:
            return super().run_node(n)
        self.operations.enter(n.name)
        if n.op == "call_module":  # `call_module` enters the mode itself, for its copy
            return super().run_node(n)
        with self.operations.scopes.watching(), self.operations:
            return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The value of an attribute; a tensor in float64, with zeroed slots."""
        value = super().get_attr(target, args, kwargs)
        return self._tensor(target, value) if isinstance(value, torch.Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The result of a copy of the module in float64."""
        module = self.module if target == WHOLE_MODEL else self.fetch_attr(target)
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) is nn.Linear and not hooked and module.weight.numel() > BLOCK and self.operations is None:
            return self._linear_in_blocks(str(target), module, *args, **kwargs)
        copied = self._copy_of(str(target), module)
        if target == WHOLE_MODEL:
            args, kwargs = args
        with contextlib.ExitStack() as stack:
            for watcher in (self.operations, self.numbers):
                if watcher is not None:
                    stack.enter_context(watcher.inside(copied, str(target)))
            return copied(*args, **kwargs)

    def _copy_of(self, target: str, module: nn.Module) -> nn.Module:
        """A copy of a module in float64 and evaluation mode, with zeroed slots. `target` is its path."""
        prefix = target and f"{target}."
        made: dict[int, torch.Tensor] = {}
        for found in Tensors.of(module).unique:
            made[id(found.tensor)] = self._tensor(prefix + found.name, found.tensor)
        copied = copy_module(module, lambda tensor: made.get(id(tensor), tensor))
        for part, original in zip(copied.modules(), module.modules(), strict=True):
            part.training = False
            if isinstance(part, nn.RMSNorm) and part.eps is None and part.weight is not None:
                part.eps = default_eps(original.get_parameter("weight").dtype)  # not of float64
        return copied

    def _linear_in_blocks(self, name: str, module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        """The result of a large linear layer, computed for some outputs at a time.

        A float64 copy of the whole weight would need too much memory. `name` is the path of the layer.
        """
        weight, bias = module.weight.detach(), module.bias
        zeroed = self.zeroed.get(f"{name}.weight", {})
        kept = torch.ones(weight.shape[0], 1, dtype=torch.float64, device=weight.device)
        zero_slots(kept, {0: zeroed.get(0, ())})
        step = max(1, BLOCK // weight.shape[1])
        outputs = []
        for start in range(0, weight.shape[0], step):
            rows = weight[start : start + step].to(torch.float64) * kept[start : start + step]
            zero_slots(rows, {1: zeroed.get(1, ())})
            outputs.append(F.linear(input, rows))
        made = torch.cat(outputs, -1)
        return made if bias is None else made + self._tensor(f"{name}.bias", bias)
