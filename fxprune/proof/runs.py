"""The runs of a proof: the graph of a captured model, or the model as its user calls it, as a copy in one precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from fxprune.capture.class_forward import as_values, forward_as_node
from fxprune.capture.code import is_torch
from fxprune.capture.inputs import Inputs
from fxprune.capture.modes import has_own_train, in_mode
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import after_run, module_hooks, same_random_state
from fxprune.capture.state import State
from fxprune.capture.tensors import Tensors
from fxprune.capture.values import map_tensors
from fxprune.capture.walk import Run
from fxprune.proof.copies import PLAIN, Copies, Copying, moved_by_rounding
from fxprune.proof.operations import Operations
from fxprune.proof.precision import FLOAT64, Precision

Modes = Callable[[str], bool]
"""A function from the path of a module to its mode: True for training."""


def evaluation(path: str) -> bool:
    """The mode of evaluation, for every module."""
    return False


def modes_of(model: nn.Module) -> Modes:
    """The modes that the modules of a model are in; that of the model itself for paths that it has not."""
    known = {path: module.training for path, module in model.named_modules()}
    return lambda path: known.get(path, model.training)


def set_by_model(model: nn.Module, training: bool) -> Modes:
    """The modes that the modules of a model have after its own `train` or `eval`, which may leave some as they are."""
    if not has_own_train(model):
        return lambda path: training
    copied = copy_module(model, lambda tensor: tensor)
    with in_mode(copied, training):
        return modes_of(copied)


class GraphRun(Run):
    """Runs the graph of a captured model on a copy of its module.

    operations: a mode that sees, and may replace, all operations of the run.
    gradients: True to record gradients; the results have none.
    tensors: the parameters and buffers of the module, where they are listed already.
    """

    def __init__(
        self,
        graph: fx.Graph,
        module: nn.Module,
        copying: Copying = PLAIN,
        operations: Operations | None = None,
        *,
        precision: Precision = FLOAT64,
        modes: Modes = evaluation,
        tensors: Tensors | None = None,
        gradients: bool = False,
    ) -> None:
        self.copies = Copies(module, copying, precision, tensors)
        self.copied = self.copies.module(modes)
        super().__init__(graph, self.copied)
        self.precision, self.operations, self.moved = precision, operations, copying.moved
        self.gradients = gradients

    def calls(self, values: list[Any], times: int | None = 1) -> list[Any]:
        """The results of some calls in a row, on copies of the same values.

        times: the number of calls; None for two if the first one changes state that a second one reads, and that runs,
            else one.
        """
        state = State(self.copied)
        with contextlib.ExitStack() as stack:
            stack.callback(after_run)
            stack.enter_context(same_random_state())  # forward may draw numbers of Python or numpy: always the same
            results = [self._call(values)]
            if times is None and any(not _is_only_counted(self.copied, name) for name in state.changed_names()):
                with contextlib.suppress(Exception):  # such as a cache that is full; the analysis has noted it
                    results.append(self._call_again(values))
            results += [self._call_again(values) for _ in range((times or 1) - 1)]
        return results

    def _call_again(self, values: list[Any]) -> Any:
        operations = self.operations
        self.operations = operations.for_next_call() if operations is not None else None
        made = self._call(values)
        self.operations = operations
        return made

    def _call(self, values: list[Any]) -> Any:
        given = self.precision.copies(values)
        if self.moved:
            given = pytree.tree_map_only(torch.Tensor, lambda tensor: moved_by_rounding(tensor, self.moved), given)
        return self.run_on(given)

    def run_on(self, values: list[Any]) -> Any:
        """The result of one call, on these values themselves."""
        if not self.gradients:
            with self._watching():
                return self.run(*values)
        with torch.enable_grad(), self._watching():
            made = self.run(*values)
        return map_tensors(made, torch.Tensor.detach)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Watch the modules of the copy; what they have read is released when they return."""
        own = {id(module) for module in self.copied.modules()}

        def left(module: nn.Module, *call: Any) -> None:
            if id(module) in own:
                self.copies.release()

        with contextlib.ExitStack() as stack:
            if self.operations is not None:
                stack.enter_context(self.operations.watching(self.copied))
            stack.enter_context(module_hooks(lambda module, args: None, left))
            yield

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        if self.operations is not None:
            self.operations.enter(n.name)
        made = super().run_node(n)
        self.copies.release()
        return made

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The result of a function."""
        if target in _RMS_NORMS and (args[3] if len(args) > 3 else kwargs.get("eps")) is None:
            args, kwargs = args[:3], {**kwargs, "eps": self.copies.eps}
        return super().call_function(target, args, kwargs)


def _is_only_counted(model: nn.Module, name: str) -> bool:
    """True for a running statistic of one of torch's batch norms in training: what it gives is of the batch alone.

    The statistics of the batch are results of an operation, which both models run and which are compared.
    """
    path, _, attribute = name.rpartition(".")
    norm = model.get_submodule(path)
    counted = isinstance(norm, _BatchNorm) and is_torch(type(norm).__module__) and norm.training
    return counted and attribute in _STATISTICS


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_RMS_NORMS = {F.rms_norm, torch.rms_norm, torch.ops.aten.rms_norm.default}


def call_model(
    model: nn.Module,
    inputs: Inputs,
    copying: Copying = PLAIN,
    *,
    times: int | None = 1,
    precision: Precision = FLOAT64,
    modes: Modes = evaluation,
    tensors: Tensors | None = None,
    gradients: bool = False,
) -> list[Any]:
    """The results of some calls of a copy of a model, as its user calls it: see `GraphRun.calls`."""
    graph = forward_as_node(model, inputs)
    run = GraphRun(graph, model, copying, precision=precision, modes=modes, tensors=tensors, gradients=gradients)
    return run.calls(as_values(inputs), times)
