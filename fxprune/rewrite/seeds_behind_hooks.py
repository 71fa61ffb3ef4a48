"""The seeds of forward's own on the path "hooks", where no operation of the analysis is followed.

The proof has constants in the place of random numbers, so it sees no other seed. The reference and the small model run
here, and the operations that draw by a seed of forward's own are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.analysis.seeded_draws import WHY, other_seed, own_seed
from fxprune.capture.captured import WHOLE_MODEL
from fxprune.capture.inputs import Inputs
from fxprune.capture.places import users_line
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Key
from fxprune.capture.seeds import UNSEEDED, told_seeds
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Removal
from fxprune.errors import RewriteError
from fxprune.planning.channels import slots_of
from fxprune.proof.copies import PLAIN, Copying
from fxprune.proof.deterministic import deterministic
from fxprune.proof.kept_weights import kept_weights
from fxprune.proof.operations import Operations
from fxprune.proof.precision import FLOAT64, OWN
from fxprune.proof.runs import GraphRun, Modes, evaluation, modes_of
from fxprune.rewrite.node_sizes import OF_A_WIDTH, WRITE_THE_SEED, contradiction

SEEDED_SHAPE = "forward seeds numbers of a shape that is made of a width"


@dataclass(frozen=True)
class _Draw:
    """The seed of forward's own by which an operation draws, the shapes of its results, and the user's line."""

    seed: int
    sizes: tuple[tuple[int, ...], ...]
    line: str


Draws = dict[Key, _Draw]
"""Key of an operation that draws by a seed of forward's own -> what it draws."""


def check_seeds(findings: Findings, small: nn.Module, removal: Removal) -> None:
    """Raise `RewriteError` if the small model draws by other seeds than the reference, or numbers of other shapes.

    Both run twice, the reference first and last: a seed that is another one in a second run is not made of a width. The
    clock is not, nor is a number that counts runs.
    """
    if not removal.removed.any():
        return
    model, kept = findings.captured.module, kept_weights(findings.model, slots_of(findings, removal.removed))
    masks = Copying(kept.zeroed, kept.values)
    modes = [modes_of(model)] + [evaluation] * any(module.training for module in model.modules())
    calls = [(inputs, "") for inputs in (findings.inputs, *findings.subject.more)]
    calls += [(call.inputs, call.name) for call in findings.subject.methods]
    for inputs, method in calls:
        for mode in modes:
            call = _Call(findings, inputs, method, mode)
            before = call.draws(model, masks)
            if not before:
                continue
            after = call.draws(small)
            if any(_others(before, after)):
                again, last = call.draws(small), call.draws(model, masks)
                steady = [key for key in _others(before, after) if before[key] == last.get(key) != again.get(key)]
                for key in steady:
                    if after[key] == again.get(key):
                        raise _error(findings, removal, key, before[key], after[key])


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a model. method: what is called instead of forward."""

    findings: Findings
    inputs: Inputs
    method: str
    modes: Modes

    def draws(self, module: nn.Module, copying: Copying = PLAIN) -> Draws:
        """The draws of a copy of the original or of the small model; none if it raises, which the proof sees too."""
        captured = self.findings.captured
        for precision in (FLOAT64, OWN):
            watch = _Draws(self.findings)
            with clean_caches(self.findings.model), deterministic(precision), told_seeds():
                try:
                    run = GraphRun(captured.graph, module, copying, watch, precision=precision, modes=self.modes)
                    run.calls(captured.arguments(self.inputs, self.method))
                    return watch.found
                except Exception:
                    continue
        return {}


class _Draws(Operations):  # type: ignore[no-untyped-call]
    """A dispatch mode that notes the operations which draw by a seed of forward's own."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self.found: Draws = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, told = kwargs or {}, torch.initial_seed()
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name, named = bound(func, args, kwargs)
        key, seed = self.scopes.current.next_key(name), own_seed(func, named, UNSEEDED)
        made = func(*args, **kwargs)
        if torch.initial_seed() != told:  # the proof has set it, which is no seed of forward's own
            torch.default_generator.manual_seed(told)
        if seed is not None:
            sizes = tuple(tuple(tensor.shape) for tensor in tensors_in(made))
            self.found[key] = _Draw(seed, sizes, users_line())
        return made


def _others(before: Draws, after: Draws) -> list[Key]:
    """The operations that draw in both models, by another seed or numbers of another shape."""
    return [key for key, draw in before.items() if key in after and after[key] != draw]


def _error(findings: Findings, removal: Removal, key: Key, before: _Draw, after: _Draw) -> RewriteError:
    """The error about an operation that draws other numbers in the small model."""
    node = next(node for node in findings.captured.graph.nodes if node.target == WHOLE_MODEL)
    shrinking = [axis.vector for axis in findings.solution.axes if removal.count(axis.vector) != axis.vector.size]
    other = other_seed(key, before.seed, after.seed, shrinking, removal)
    if other is None:
        pairs = {
            pair for old, new in zip(before.sizes, after.sizes, strict=False) for pair in zip(old, new, strict=False)
        }
        widths = [vector for vector in shrinking if (vector.size, removal.count(vector)) in pairs]
        why = f"{key[2]} draws {after.sizes}, which was {before.sizes} before slots went: {WHY}"
        do, cause = "draw numbers of a shape that is written as numbers, or `ignore` these layers", SEEDED_SHAPE
    else:
        widths, why, do, cause = list(other.widths), str(other), WRITE_THE_SEED, OF_A_WIDTH
    scope = key[0].partition("|")[0]
    return contradiction(node, node, why, scope, tuple(widths or shrinking), do, before.line, other=cause)
