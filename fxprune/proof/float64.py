"""Running a model in float64 and evaluation mode, some of its slots set to zero, one layer's copy at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation
from fxprune.capture.captured import WHOLE
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import no_fused_attention, same_random_state
from fxprune.capture.scopes import Scopes
from fxprune.capture.walk import Run
from fxprune.ops.normalization import default_eps
from fxprune.proof.deterministic import Sober

BLOCK = 1 << 21
"""Elements of a weight that are held in float64 at a time."""


def zero_slots(tensor: torch.Tensor, dims: Mapping[int, Any]) -> None:
    """Set the listed slots of each dimension to zero, in place. Lists of positions keep their numbers."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    for dim, indices in dims.items():
        tensor.index_fill_(dim, torch.as_tensor(indices, dtype=torch.int64, device=tensor.device), 0)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Without gradients, without chance, without fused attention."""
    with torch.no_grad(), same_random_state(), no_fused_attention(), Sober():  # type: ignore[no-untyped-call]
        yield


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


def doubled(values: Any) -> Any:
    """Copies of all tensors of a nested value, floating ones in float64."""
    return pytree.tree_map_only(torch.Tensor, _double, values)


NOTHING = nn.Module()
"""Followed where no module runs."""


class Watcher(Protocol):
    """Follows what runs inside a module, a copy of the one at `path`."""

    def inside(self, module: nn.Module, path: str) -> contextlib.AbstractContextManager[None]:
        """While the module runs."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a run, and knows what the analysis saw it do: `observation`, by the key in `scopes`."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings = findings
        self.scopes = Scopes(NOTHING)
        self.node = ""
        self.observation = Observation()

    def enter(self, node: str) -> None:
        """The next operations belong to this node."""
        self.node, self.observation = node, self.findings.observed.observations[node]
        self.scopes.node(node)

    @contextlib.contextmanager
    def inside(self, module: nn.Module, path: str) -> Iterator[None]:
        """Follow a module, a copy of the one at `path`, and those in it."""
        self.scopes.follow(module, path)
        with self.scopes.watching(), self:
            yield
        self.scopes.follow(NOTHING, "")


class Precise(Run):
    """Runs a graph with each module's tensors in float64, removed slots zero, in evaluation mode."""

    def __init__(
        self,
        graph: fx.Graph,
        module: nn.Module,
        removed: Mapping[str, Mapping[int, Any]],
        operations: Operations | None,
        unrounded: Mapping[str, torch.Tensor] | None = None,
        numbers: Watcher | None = None,
    ) -> None:
        super().__init__(graph, module)
        self.numbers = numbers
        self.removed = removed
        self.operations = operations
        self.unrounded = unrounded or {}

    def _tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        copied = _double(tensor)
        zero_slots(copied, self.removed.get(name, {}))
        exact = self.unrounded.get(name)
        if exact is not None:  # a new number that is right but for the rounding of its type counts as right
            rounded = tensor.detach().clone().copy_(exact)
            copied = torch.where(tensor == rounded, exact, copied)
        return copied

    def run_node(self, n: fx.Node) -> Any:
        """The node, its operations watched."""
        if self.operations is None:
            return super().run_node(n)
        self.operations.enter(n.name)
        if n.op == "call_module":  # enters the mode around the copy that it makes
            return super().run_node(n)
        with self.operations.scopes.watching(), self.operations:
            return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The tensor in float64."""
        value = super().get_attr(target, args, kwargs)
        return self._tensor(target, value) if isinstance(value, torch.Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A copy of the module in float64."""
        module = self.module if target == WHOLE else self.fetch_attr(target)
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) is nn.Linear and not hooked and module.weight.numel() > BLOCK and self.operations is None:
            return self._linear_in_blocks(str(target), module, *args, **kwargs)
        precise = self._doubled(str(target), module)
        if target == WHOLE:
            args, kwargs = args
        with contextlib.ExitStack() as stack:
            for watcher in (self.operations, self.numbers):
                if watcher is not None:
                    stack.enter_context(watcher.inside(precise, str(target)))
            return precise(*args, **kwargs)

    def _doubled(self, target: str, module: nn.Module) -> nn.Module:
        """A copy of a module in float64 and evaluation mode, its removed slots zero."""
        prefix = target and f"{target}."
        made: dict[int, torch.Tensor] = {}
        for name, tensor in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]:
            if id(tensor) not in made:
                made[id(tensor)] = self._tensor(prefix + name, tensor)
        precise = copy_module(module, lambda tensor: made.get(id(tensor), tensor))
        for part, original in zip(precise.modules(), module.modules(), strict=True):
            part.training = False
            if isinstance(part, nn.RMSNorm) and part.eps is None and part.weight is not None:
                part.eps = default_eps(original.get_parameter("weight").dtype)  # not that of float64
        return precise

    def _linear_in_blocks(self, name: str, module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        """A large linear layer, some outputs at a time: the copy of its weight would be the largest tensor of all."""
        weight, bias = module.weight.detach(), module.bias
        removed = self.removed.get(f"{name}.weight", {})
        kept = torch.ones(weight.shape[0], 1, dtype=torch.float64, device=weight.device)
        zero_slots(kept, {0: removed.get(0, ())})
        step = max(1, BLOCK // weight.shape[1])
        outputs = []
        for start in range(0, weight.shape[0], step):
            rows = weight[start : start + step].to(torch.float64) * kept[start : start + step]
            zero_slots(rows, {1: removed.get(1, ())})
            outputs.append(F.linear(input, rows))
        made = torch.cat(outputs, -1)
        return made if bias is None else made + self._tensor(f"{name}.bias", bias)
