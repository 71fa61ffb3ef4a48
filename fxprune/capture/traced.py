"""The path "fx": a graph by symbolic tracing. Every node keeps the line of the user's code that made it.

A graph has one course: no mode, no state, no backward of its own. A module whose forward needs one of them stays whole,
as one node that runs the module itself. The model is traced in rounds: each round finds modules that have to stay
whole, and the next one does not trace into them. Where the model itself would have to stay whole, the path is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxprune.arguments import checks_names
from fxprune.capture.at_rest import BACKWARD_HOOKS, FORWARD_HOOKS, hooks_of, own_modes
from fxprune.capture.captured import NOTES, Captured, FrontEnd, captured_graph
from fxprune.capture.error_place import line_of as error_line
from fxprune.capture.graph_names import check_names
from fxprune.capture.in_place import mutated_constants, settle_in_place
from fxprune.capture.inputs import Inputs, normalize
from fxprune.capture.kept_buffers import buffers_kept
from fxprune.capture.module_copy import copy_module
from fxprune.capture.pickled_tracer import BufferTracer
from fxprune.capture.process_state import clean_caches
from fxprune.capture.second_names import add_second_names
from fxprune.capture.symbolic import Reason, Trace, Tracer, trace_once
from fxprune.capture.trace_check import check_trace
from fxprune.errors import CaptureError, text_of

WHOLE = "fxprune_whole"
"""Key in `meta` of a `GraphModule`: a dict from the path of a module that stays whole to the reason."""


@checks_names
def trace(model: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """A model as a `torch.fx.GraphModule` that reads like it, and does what it does in both modes.

    It shares the parameters and buffers of the model. What a graph cannot express stays whole, as one `call_module`
    node that runs the module itself: a submodule whose forward reads `self.training` and does something else in the
    other mode, applies an `autograd.Function`, computes in a context (`no_grad`, `enable_grad`, `autocast`,
    `checkpoint`, `inference_mode`), assigns to its attributes or to `.data`, draws or seeds random numbers, decides by
    numbers in buffers, carries hooks, has a `train` of its own, or cannot be traced. The dict `meta["fxprune_whole"]`
    of the result has the reason for each of them, by its path. Operations that draw in the forward of the model itself
    (`torch.randn_like(x)`) are nodes, which draw in each call.

    Operators in place stay in place. Arguments of forward that are None, a flag or a string in this call are constants
    of the graph, which checks them. A module or tensor with several names has all of them; torch's own copies and
    pickles of a `GraphModule` keep those below the root.

    Args:
        model: any module. A `GraphModule` is returned as it is.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments. Model and graph run
            on them in both modes, with the same random numbers, and must give the same.

    Raises `CaptureError` with the reason and the source line if the model itself would have to stay whole, if symbolic
    tracing fails in its own forward or in a module with all of its parameters, or if the graph gives other numbers than
    the model.

    >>> import torch, fxprune
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = torch.nn.Conv2d(8, 8, 1)
    ...     def forward(self, x):
    ...         return torch.nn.functional.dropout(self.conv(x), 0.5, self.training)
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), Block(), torch.nn.Conv2d(8, 4, 3))
    >>> x = torch.randn(1, 3, 8, 8)
    >>> traced = fxprune.trace(net, x)
    >>> [node.target for node in traced.graph.nodes if node.op == "call_module"]
    ['0', '1', '2', '3']
    >>> list(traced.meta["fxprune_whole"])
    ['2']
    >>> fxprune.transform(traced, x, ratio=0.5).get_submodule("2").conv
    Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1))
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    inputs = normalize(example_inputs)
    with buffers_kept(model):
        with clean_caches(model):
            traced = traced_graph(model, inputs)
        if traced is not model:
            check_trace(model, traced, inputs)
    return traced


def traced_graph(model: nn.Module, inputs: Inputs | None = None) -> fx.GraphModule:
    """The graph of `trace`, without running the model. inputs: None if they are unknown; then defaults count."""
    if isinstance(model, fx.GraphModule):
        return model
    check_names(model)
    rounds = _Rounds(model, _constants(model, inputs))
    copied, graph = rounds.run()
    settle_in_place(graph)
    graph._tracer_cls = BufferTracer
    traced = fx.GraphModule(copied, graph, type(model).__name__)
    add_second_names(copied, traced)
    _same_containers(model, traced)
    traced.meta[WHOLE] = {path: str(reason) for path, reason in rounds.reasons.items()}
    traced.meta[NOTES] = _notes(model, rounds.reasons.values())
    return traced


def _constants(model: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """The arguments of forward that are None, flags or strings in this call."""
    signature = inspect.signature(model.forward)
    try:
        arguments = signature.bind_partial(*(inputs or ((), {}))[0], **(inputs or ((), {}))[1])
    except TypeError:  # the inputs do not fit; that is an error when the graph gets them
        return {}
    arguments.apply_defaults()
    return {name: value for name, value in arguments.arguments.items() if value is None or type(value) in (bool, str)}


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return captured_graph(TRACED, traced_graph(model, inputs))


def _without_inputs(model: nn.Module) -> Captured:
    return captured_graph(TRACED, traced_graph(model))


TRACED = FrontEnd("fx", _capture, takes_graphs=True, without_inputs=_without_inputs)


# -- rounds -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Rounds:
    """The rounds of a trace.

    constants: the arguments of forward that are constants. reasons: path of a module that stays whole -> why.
    """

    model: nn.Module
    constants: Mapping[str, Any]
    reasons: dict[str, Reason] = field(default_factory=dict)

    def run(self) -> tuple[nn.Module, fx.Graph]:
        """The copy that was traced last, and its graph.

        Raises `CaptureError` if the trace fails, or if the model itself would have to stay whole.
        """
        self._add(_at_rest(self.model))
        while True:
            copied, made = self._trace(None)
            new = dict(made.reasons)
            if made.graph is not None and not new:
                new = mutated_constants(made.graph)
            if not new and made.reads:
                new = self._mode_dependent(made)
            if not new and made.error is not None:
                new = self._not_traceable(made, made.error)
            if new.keys() - self.reasons.keys():
                self._add(new)
            elif made.graph is None:
                assert made.error is not None
                raise self._failed(made.error)
            else:
                return copied, made.graph

    def _trace(self, training: bool | None) -> tuple[nn.Module, Trace]:
        """A copy of the model and its trace, in one mode; None is the mode that the model is in."""
        tensors: list[torch.Tensor] = []

        def same(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor)
            return tensor

        copied = copy_module(self.model, same)
        for module in copied.modules() if training is not None else ():
            module.__dict__["training"] = training
        return copied, trace_once(copied, tensors, self.reasons.keys(), self.constants)

    def _mode_dependent(self, made: Trace) -> dict[str, Reason]:
        """The innermost modules whose part of the graph is another one in the other mode."""
        modes = {m.training for m in self.model.modules()}
        others = [mode for mode in (False, True) if modes != {mode}]
        different: dict[str, Reason] = {}
        for mode in others:
            _, other = self._trace(mode)
            for path, reason in made.reads.items():
                fails = other.graph is None and (path in other.failed_in or not path)
                if fails or made.events.get(path) != other.events.get(path):
                    different[path] = reason
        return {p: r for p, r in different.items() if not any(_below(q, p) for q in different)}

    def _not_traceable(self, made: Trace, error: Exception) -> dict[str, Reason]:
        """The module in whose forward the trace failed, and the others of its class, which would fail one by one.

        Empty if the model itself failed, or a module that has all of its parameters: nothing would be in the graph.
        """
        path = made.failed_in[-1] if made.failed_in else ""
        modules = dict(self.model.named_modules())
        every = {id(parameter) for parameter in self.model.parameters()}
        if not path or {id(parameter) for parameter in modules[path].parameters()} >= every:
            return {}
        why = f"its forward cannot be traced: {text_of(error, lines=1).partition('. ')[0]}"
        alike = [name for name, module in modules.items() if name and type(module) is type(modules[path])]
        return {name: Reason(name, why, error_line(error)) for name in alike if name not in self.reasons}

    def _add(self, reasons: dict[str, Reason]) -> None:
        if "" in reasons:
            reason = reasons[""]
            raise CaptureError(
                f"{type(self.model).__name__} does what a graph cannot express",
                at=f"the model itself{f', {reason.source}' if reason.source else ''}",
                why=reason.why,
                do="pass the model itself to `transform`, which keeps its class, or move that part into a submodule",
            )
        for path, reason in reasons.items():
            self.reasons.setdefault(path, reason)

    def _failed(self, error: Exception) -> CaptureError:
        made = CaptureError(
            f"{type(self.model).__name__} cannot be traced symbolically",
            why=text_of(error),
            do='pass the model itself to `transform` (path="eager" keeps its class, path="export" exports it), or '
            "trace it yourself (torch.fx.Tracer with leaf modules, concrete_args) and pass the GraphModule",
        )
        made.__cause__ = error
        return made


def _below(path: str, other: str) -> bool:
    """True if a module is inside the other one."""
    return path != other and (not other or path.startswith(f"{other}."))


def _at_rest(model: nn.Module) -> dict[str, Reason]:
    """The reasons that are known without a trace: hooks, and modes that a class sets in its own way."""
    found: dict[str, Reason] = {}
    layers = Tracer()
    for path, module in model.named_modules():
        if path and layers.is_leaf_module(module, path):
            continue  # one node of the graph anyway
        for name, line in hooks_of(module, {**FORWARD_HOOKS, **BACKWARD_HOOKS}):
            found.setdefault(path, Reason(path, f"it carries {name}", line))
        for name, line in own_modes(module):
            found.setdefault(path, Reason(path, f"its class has {name}", line))
    return found


def _notes(model: nn.Module, reasons: Iterable[Reason]) -> tuple[str, ...]:
    """One sentence for all modules of a class that stay whole for the same reason."""
    alike: dict[tuple[str, str], list[str]] = {}
    for reason in reasons:
        kind = type(model.get_submodule(reason.module)).__name__
        alike.setdefault((kind, str(reason)), []).append(reason.module)
    return tuple(
        f"one node of the graph: {paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''} ({kind}), {why}"
        for (kind, why), paths in alike.items()
    )


def _same_containers(model: nn.Module, traced: fx.GraphModule) -> None:
    """Make the containers of a traced model like those of the original. Changes `traced`.

    They get the same training mode and the same order of parameters, buffers and submodules, and `state_dict` contains
    the same buffers. `torch.fx` adds buffers for tensors that were plain attributes or made in forward; `state_dict`
    leaves these out.
    """
    originals = dict(model.named_modules(remove_duplicate=False))
    for name, module in traced.named_modules():
        if type(module) not in (nn.Module, type(traced)):
            continue  # one node of the graph: it is the original layer
        original = originals.get(name)
        module.training = model.training if original is None else original.training
        known = set() if original is None else set(original._buffers) - original._non_persistent_buffers_set
        module._non_persistent_buffers_set |= set(module._buffers) - known
        if original is not None:  # same order of state_dict and parameters()
            for kind in ("_modules", "_parameters", "_buffers"):
                have, order = getattr(module, kind), list(getattr(original, kind))
                for key in [*(k for k in order if k in have), *(k for k in list(have) if k not in order)]:
                    have[key] = have.pop(key)
