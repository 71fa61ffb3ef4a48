"""Running the graph of a captured model, node by node."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.captured import WHOLE_MODEL
from fxprune.capture.error_place import line_of, missing_copy, module_of_error
from fxprune.capture.example_numbers import OutOfRangeError, remember
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.methods import call_method
from fxprune.capture.places import module_of, source_of
from fxprune.capture.process_state import no_fake_tensor_log, no_fused_attention, same_random_state
from fxprune.capture.thread_state import same_levels
from fxprune.errors import CaptureError, FxpruneError, text_of

NUMBERS = (
    "check that the model runs on these example inputs: their numbers, such as token ids, not only shapes and dtypes"
)
"""The next step where the model raises on the numbers in its example inputs."""

NodeVisitor = Callable[[fx.Node, Callable[[], Any]], Any]


class Run(fx.Interpreter):
    """Runs the graph of a captured model, from one value per placeholder.

    module: the captured module or a copy of it.
    """

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the graph. An error leaves no level of `torch.func` behind."""
        with same_levels():
            return super().run(*args, **kwargs)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The next of the values that `run` was called with."""
        return next(self.args_iter)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The result of a submodule, or of the whole model for a node with the target `WHOLE_MODEL`.

        `args` of such a node are a tuple of arguments, a dict of keyword arguments, and the name of the method to call.
        """
        if target == WHOLE_MODEL:
            inputs, method = args[:2], args[2]
            return call_method(self.module, method, inputs) if method else self.module(*inputs[0], **inputs[1])
        return super().call_module(target, args, kwargs)


class _Walk(Run):
    def __init__(self, graph: fx.Graph, module: nn.Module, visit: NodeVisitor) -> None:
        super().__init__(graph, module)
        self.visit = visit
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return self.visit(n, lambda: super(_Walk, self).run_node(n))


def walk(
    graph: fx.Graph,
    module: nn.Module,
    faker: Faker | Real,
    values: list[Any],
    visit: NodeVisitor,
    modes: Sequence[contextlib.AbstractContextManager[Any]] = (),
    *,
    gradients: bool = False,
) -> Any:
    """Run a graph node by node, and return its result.

    The run changes no random state, and attention modules do not use their fused kernels, whose parts cannot be seen.

    Args:
        faker: makes the tensors to run on from those in `values`.
        values: one value per placeholder, with real tensors.
        visit: called as `visit(node, execute)` for each node in order. `execute()` runs the node; `visit` returns the
            result of the node.
        modes: context managers that are active during the run.
        gradients: True to record gradients, as a training step does.

    Raises `CaptureError`, which names the node, the module and the source line, if the forward raises.
    """
    run = _Walk(graph, module, visit)
    fakes = faker.tree(values)
    if isinstance(faker, Faker):
        for fake, real in zip(pytree.tree_leaves(fakes), pytree.tree_leaves(values), strict=True):
            remember(fake, real)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the model gives them when its user runs it; none may end the walk
            kept = (no_fused_attention(), same_random_state(), no_fake_tensor_log())
            for mode in (torch.set_grad_enabled(gradients), faker.mode, *kept, *modes):
                stack.enter_context(mode)
            return run.run(*fakes)
    except FxpruneError:
        raise
    except Exception as error:
        node = run.node
        where = f"{module_of(node) or 'the model'} ({source_of(node)}), node %{node.name}" if node else "the model"
        what = "the model's forward"
        if node is not None and node.target == WHOLE_MODEL:
            line = line_of(error)
            where = (module_of_error(error, module) or "the model") + (f" ({line})" if line else "")
            what = f'the model\'s method "{values[-1]}"' if values[-1] else what
        why, do = text_of(error), "check that the model runs on these example inputs"
        fake = isinstance(faker, Faker)
        if isinstance(error, OutOfRangeError):
            why, do, fake = f"IndexError: {error}", NUMBERS, False  # as the model itself raises
        if kind := missing_copy(error):
            why = f"a table outside of the model has a {kind} as a key, and fxprune runs copies, which are not in it"
            do = "keep what belongs to a module in an attribute of it"
        raise CaptureError(
            f"{what} raises{' on fake tensors' if fake else ''}",
            raised=True,
            at=where,
            why=why,
            do=do,
        ) from error
