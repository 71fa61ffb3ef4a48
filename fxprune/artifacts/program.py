"""Programs of `torch.export`, from a copy of the model in evaluation mode with plain containers as outputs."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from fxprune._record import record
from fxprune.artifacts.export_errors import not_exported
from fxprune.capture.error_place import in_a_distribution
from fxprune.capture.export_refusals import first_sentence
from fxprune.capture.graph_names import free_names
from fxprune.capture.inputs import Inputs
from fxprune.capture.module_copy import deep_copy_with
from fxprune.capture.process_state import no_fused_attention, same_random_state, silence
from fxprune.capture.tensors import computed_tensors
from fxprune.capture.uncopied import why_no_copy
from fxprune.capture.values import named_parts, tensors_in
from fxprune.errors import CaptureError, FxpruneError, counted
from fxprune.paths import PATHS


@dataclass(frozen=True)
class Portable:
    """A copy of a model that can be exported.

    dropped: position of an output that is no tensor -> its type; filled by each run. reasons: sentences for `Exported`.
    """

    model: nn.Module
    dropped: dict[str, str]
    reasons: tuple[str, ...]

    def run(self, inputs: Inputs, seed: int | None = None) -> list[torch.Tensor]:
        """Returns the tensors among the outputs, without gradients; inputs and random state do not change.

        seed: of the random numbers of this run; None for the state as it is.
        """
        args, kwargs = cloned(inputs)
        with torch.no_grad(), same_random_state(), no_fused_attention():
            if seed is not None:
                torch.manual_seed(seed)
            return tensors_in(self.model(*args, **kwargs))


def evaluation_copies(model: nn.Module) -> tuple[Portable, Portable]:
    """Two deep copies in evaluation mode, which share their parameters: one to run, one to export.

    Where forward keeps something, such as anchors of a size, torch leaves its own tensors in the model that it exports.
    Raises `CaptureError` for a graph whose training mode is fixed.
    """
    _check_mode(model)
    reasons = ("the model is in training mode; the file holds what it does in evaluation mode",)
    memo = computed_tensors(model)
    try:
        to_run = deep_copy_with(model, memo).eval()
        made = dict(to_run.named_parameters(remove_duplicate=False))
        shared = {id(t): made[name] for name, t in model.named_parameters(remove_duplicate=False) if name in made}
        to_export = deep_copy_with(model, {**computed_tensors(model), **shared}).eval()
    except Exception as failure:
        at, why, do = why_no_copy(model, memo, failure)
        raise CaptureError(f"{type(model).__name__} cannot be copied", at=at, why=why, do=do) from failure
    training = any(module.training for module in model.modules())
    return _portable(to_run, reasons if training else ()), _portable(to_export, reasons if training else ())


def _portable(copied: nn.Module, reasons: tuple[str, ...]) -> Portable:
    """A copy with outputs that are plain containers. Changes the copy."""
    dropped: dict[str, str] = {}
    inner: Callable[..., Any] = copied.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        dropped.clear()
        return tensors_only(inner(*args, **kwargs), "", dropped)

    copied.__dict__["forward"] = forward
    return Portable(copied, dropped, reasons)


def _check_mode(model: nn.Module) -> None:
    try:
        made = record(model)
    except FxpruneError:
        return
    if made.training and PATHS[made.path].fixes_mode:
        raise CaptureError(
            "the model is a graph of training mode",
            why=f'it was made by "{made.path}" of a model in training mode, and stays in that mode',
            do="call `transform` on the model in evaluation mode",
        )


def tensors_only(value: Any, path: str, dropped: dict[str, str]) -> Any:
    """Returns an output as tuples, lists and dicts of tensors, with None for every other object.

    path: the position of `value` in the output. dropped: gets {position: type} of the other objects.

    >>> noted = {}
    >>> tensors_only({"n": 3, "y": [torch.ones(1), None]}, "", noted), noted
    ({'n': None, 'y': [tensor([1.]), None]}, {"['n']": 'int'})
    """
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {key: tensors_only(part, f"{path}[{key!r}]", dropped) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        parts = [tensors_only(part, f"{path}[{i}]", dropped) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    named = named_parts(value)
    if named is not None:
        return {name: tensors_only(part, f"{path}.{name}", dropped) for name, part in named.items()}
    dropped[path] = "int" if isinstance(value, torch.SymInt) else type(value).__name__
    return None


def program_of(
    portable: Portable, inputs: Inputs, varying: frozenset[int]
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Returns the program, and sentences about the outputs that it leaves out.

    Args:
        portable: the copy of the model.
        inputs: the example inputs.
        varying: the ids of the input tensors whose dimension 0 is the batch, which may have any size.
    """
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    given = inputs
    if varying:
        size = next(t.shape[0] for t in pytree.tree_leaves(inputs) if id(t) in varying)
        batch = torch.export.Dim("batch")
        inputs, marked = _with_batch(inputs, varying, max(size, 2))  # torch would fix a batch of one
        for tensor in marked:
            shapes[tensor] = {0: batch}
    else:
        inputs = cloned(inputs)
    dynamic = shapes if varying else None
    try:
        program, noted = _exported(portable, inputs, dynamic)
    except Exception as failure:
        try:  # what forward makes once, such as anchors of a size, may be what torch refuses
            portable.run(inputs)
            program, noted = _exported(portable, inputs, dynamic)
        except Exception:
            fixed = bool(varying) and _is_exported(portable, given)
            raise not_exported(failure, portable.model, batch=bool(varying), fixed=fixed) from failure
        noted.append(f"exported after a first call, since torch refuses that call: {first_sentence(failure)}")
    dropped = portable.dropped
    if not any(isinstance(s.arg, torch.export.graph_signature.TensorArgument) for s in _outputs(program)):
        raise CaptureError(
            "the model returns no tensor",
            why="a graph has no other results",
            do="return at least one tensor, or wrap the model in a module that does",
        )
    left = [f"the output {path or 'as a whole'} is left out: {kind} is no tensor" for path, kind in dropped.items()]
    return program, [*portable.reasons, *left, *noted, *_with_free_names(program)]


def _with_free_names(program: torch.export.ExportedProgram) -> list[str]:
    """Change names of parts that the module of a program cannot have. Returns sentences about them."""
    tables: tuple[dict[str, Any], ...] = program.state_dict, program.constants
    free = free_names(name for table in tables for name in table)
    for table in tables if free else ():
        parts = list(table.items())
        table.clear()
        table.update((free.get(name, name), part) for name, part in parts)
    signature = program.graph_signature
    for spec in (*signature.input_specs, *signature.output_specs):
        if isinstance(spec.target, str):
            spec.target = free.get(spec.target, spec.target)
    if not free:
        return []
    name, other = next(iter(free.items()))
    more = f", and {counted(len(free) - 1, 'more tensor')} by other names" if free.keys() - {name} else ""
    why = "no graph can have the name, a keyword of Python or a part of torch.fx.GraphModule"
    return [f'the file calls "{name}" "{other}"{more}: {why}']


def _exported(portable: Portable, inputs: Inputs, shapes: Any) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Returns the program, and the warnings of torch.

    A graph cannot have the check of the arguments of a distribution, which raises for some numbers: it is left out, and
    said.
    """
    try:
        return _exported_as_it_is(portable, inputs, shapes)
    except Exception as failure:
        if not in_a_distribution(failure):
            raise
    with _unchecked_distributions():
        program, noted = _exported_as_it_is(portable, cloned(inputs) if shapes is None else inputs, shapes)
    left = "the checks of the arguments of distributions are left out: they read numbers, which a graph does not know"
    return program, [left, *noted]


def _exported_as_it_is(
    portable: Portable, inputs: Inputs, shapes: Any
) -> tuple[torch.export.ExportedProgram, list[str]]:
    args, kwargs = inputs
    with quiet() as noted, torch.no_grad():
        return torch.export.export(portable.model, args, kwargs, dynamic_shapes=shapes, strict=False), noted


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Distributions that are made here check their arguments only where they are told to (`validate_args=True`)."""
    before: bool = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _is_exported(portable: Portable, inputs: Inputs) -> bool:
    """True if torch exports the model for the sizes of these inputs alone."""
    try:
        _exported(portable, cloned(inputs), None)
    except Exception:  # it is told already of a dynamic batch
        return False
    return True


def _outputs(program: torch.export.ExportedProgram) -> list[Any]:
    return [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]


def _with_batch(inputs: Inputs, varying: frozenset[int], size: int) -> tuple[Inputs, list[torch.Tensor]]:
    """Returns the inputs with a batch of this size, and those of their tensors that have a batch."""
    leaves = pytree.tree_leaves(inputs)
    changed = resized(inputs, varying, size)
    new = pytree.tree_leaves(changed)
    return changed, [b for a, b in zip(leaves, new, strict=True) if id(a) in varying]


def resized(inputs: Inputs, varying: frozenset[int], size: int) -> Inputs:
    """Returns the inputs with a batch of this size: the samples are repeated; tensors without a batch are copied."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in varying:
            return tensor.detach().clone()
        return tensor.detach()[torch.arange(size, device=tensor.device) % tensor.shape[0]]

    changed: Inputs = pytree.tree_map_only(torch.Tensor, change, inputs)
    return changed


def cloned(inputs: Inputs) -> Inputs:
    """Returns copies of inputs, so that a forward may change them."""
    copied: Inputs = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), inputs)
    return copied


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Hides printed and logged text; the list gets the first line of each warning, except deprecations of torch."""
    texts: list[str] = []
    with silence() as caught:
        yield texts
    own = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
    for warning in caught:
        if not issubclass(warning.category, own):
            texts.append(f"the exporter warns: {_weights_counted(str(warning.message).strip().splitlines()[0])}")


def _weights_counted(text: str) -> str:
    """A text in which the list of all weights of a recurrent layer is their number.

    >>> _weights_counted("The tensor attributes self.rnn._flat_weights[0], self.rnn._flat_weights[1] were assigned.")
    'The 2 weights of rnn were assigned.'
    """
    one = r"self\.(?:[\w.]+\.)?_flat_weights\[\d+\]"

    def counted_by_layer(found: re.Match[str]) -> str:
        layers = Counter(re.findall(r"self\.(?:([\w.]+)\.)?_flat_weights", found[0]))
        return "The " + " and ".join(f"{counted(n, 'weight')} of {name or 'the model'}" for name, n in layers.items())

    return re.sub(rf"(?:The tensor attributes? )?{one}(?:, {one})*", counted_by_layer, text)
