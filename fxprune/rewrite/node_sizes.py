"""The sizes in the arguments of nodes, settled while the smaller graph runs on fake tensors.

The run checks the result, too: every node must give the shapes that the vectors of the original have after the removal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation, Walked
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.analysis.seeded_draws import OtherSeed, other_seed
from fxprune.capture.captured import WHOLE_MODEL
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.function_contexts import FunctionContext, context_notes, noted_contexts
from fxprune.capture.given_attributes import same_attributes
from fxprune.capture.modes import RunMode, in_mode, random_decisions
from fxprune.capture.module_copy import copy_module
from fxprune.capture.places import module_of, raised_at, source_of
from fxprune.capture.process_state import no_caches
from fxprune.capture.scopes import Key, Scopes
from fxprune.capture.seeds import told_seeds
from fxprune.capture.thread_state import of_no_level
from fxprune.capture.values import leaves, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.errors import SIZES, RewriteError, text_of
from fxprune.ops import Operand
from fxprune.ops.site import Site
from fxprune.proof.shapes import ContradictionError, ShapeCheck
from fxprune.rewrite.draft import Draft
from fxprune.rewrite.frozen_numbers import compute_again
from fxprune.rewrite.refused_sizes import RefusedSizes
from fxprune.rewrite.result_numbers import number_note, other_numbers
from fxprune.rewrite.scales import HeldWidthsError, OtherNumber, factors_for, from_a_width
from fxprune.rewrite.sizes import resize

WRITE_THE_SCALE = "write the scale as a number, or `ignore` the layers whose width it is computed from"
WRITE_THE_SEED = "write the seed as a number, or `ignore` the layers whose width it is made of"
OF_A_WIDTH = "forward makes a seed of a width"
OTHERWISE = "forward decides otherwise in the smaller model"
DECIDES = "`ignore` the layers on which the decision depends, or give inputs with `also` on which forward decides so"

_LOOSE = {
    *(torch.ops.aten.einsum.default, torch.ops.aten.linear.default, torch.ops.aten.matmul.default),
    torch.ops.aten.scaled_dot_product_attention.default,
}
"""Nodes that may run other operations for other sizes, so only their results are checked, not the operations inside."""


def settle_nodes(
    draft: Draft, findings: Findings, removal: Removal, faker: Faker
) -> tuple[ScaleFactors, tuple[str, ...]]:
    """Run the smaller graph; settle the sizes of each node just before it runs, check its shapes just after.

    The smaller graph also runs on the further inputs, in the other mode and once more where it leaves a state. Other
    methods of the model run, where the analysis has seen the original so. These runs are only checked.

    Returns the factors that weights have to carry, because code computes other scales from the smaller sizes, and
    sentences about numbers in the result that are computed from widths.

    Raises `RewriteError` where a shape is not the promised one, or no weights can carry a factor.
    """
    had_users = {node for node in draft.graph.nodes if node.users}
    with no_caches(findings.model):
        runs: list[_Checking] = [_Settling(draft, findings, removal)]
        runs[0].run(faker)
        compute_again(draft.graph, draft.before, findings.observed.main.nodes, runs[0].results)
        for seen in findings.runs[1:]:
            runs.append(_Checking(draft, findings, removal, seen))
            runs[-1].run(faker)
        for run in runs:
            run.check_unexplained(faker)
    _erase_unused(draft.graph, had_users)
    notes = {text: when for run in reversed(runs) for text, when in run.in_result}
    kept = {text: run.began for run in reversed(runs) if run.contexts for text in reversed(_context_notes(run))}
    said = [text + when for texts in (notes, kept) for text, when in reversed(texts.items())]
    return _factors(findings, removal, runs), tuple(said)


def _only_run(node: fx.Node, execute: Callable[[], Any]) -> Any:
    return execute()


def _context_notes(run: _Checking) -> list[str]:
    """Sentences about what an `autograd.Function` keeps in a run, and has other numbers in the original."""
    found: list[FunctionContext] = []
    faker, captured = Faker(), run.findings.captured
    with no_caches(run.findings.model), told_seeds():
        module = copy_module(captured.module, faker.of_state)
        scopes = Scopes(module)
        with in_mode(module, run.of.training) if run.sets_mode else contextlib.nullcontext():
            for seen in run.of.calls:
                decisions = (random_decisions(),) if run.other_mode or seen.method else ()
                modes = (*decisions, noted_contexts(found, scopes), scopes.watching())
                walk(captured.graph, module, faker, run.values, _only_run, modes, gradients=seen.gradients)
    return context_notes(found, run.contexts)


def run_once(draft: Draft, findings: Findings, removal: Removal) -> ScaleFactors:
    """Run the smaller model on real tensors, where its forward decides by numbers and shapes cannot be proven.

    Code whose result is not used runs too, and may need channels that are gone. Raises `RewriteError` where it does.

    Returns the factors that weights have to carry.
    """
    runs = [_Running(draft, findings, removal, seen) for seen in findings.runs]
    with no_caches(findings.model):
        for run in runs:
            run.run(Real())
            run.check_unexplained(Real())
    return _factors(findings, removal, runs)


def _factors(findings: Findings, removal: Removal, runs: Sequence[_Checking]) -> ScaleFactors:
    """The factors for the operations that were called with other numbers. Raises `RewriteError` if there are none."""
    try:
        return factors_for(findings, removal, [number for run in runs for number in run.numbers])
    except HeldWidthsError as error:
        before, node, scope = error.number.before, error.number.node, error.number.scope
        raise contradiction(before, node, str(error), scope, error.vectors, WRITE_THE_SCALE) from None


class _Checking:
    """One run of the smaller graph, node by node, in which the shapes of all results are checked.

    seen: the run of the original that it repeats, with the same inputs and in the same mode.
    """

    def __init__(self, draft: Draft, findings: Findings, removal: Removal, seen: Walked) -> None:
        self.draft, self.removal, self.seen = draft, removal, seen
        self.values = findings.captured.arguments(seen.inputs, seen.method)
        self.widths = findings.observed.vectors
        self.results: dict[fx.Node, Any] = {}
        self.scopes = Scopes(draft.module)
        originals = dict(findings.captured.module.named_modules())
        modules = draft.module.named_modules()
        replaced = {name for name, module in modules if name and type(module) is not type(originals[name])}
        self.check = ShapeCheck(removal, self.scopes, replaced)
        self.refused = RefusedSizes(self.check)
        self.numbers: list[OtherNumber] = []
        self.in_result: list[tuple[str, str]] = []
        self.contexts: list[FunctionContext] = []
        self.findings, self.of = findings, seen
        self.drawn: dict[Key, int] = {}
        self.unexplained: list[tuple[OtherSeed, fx.Node, fx.Node]] = []
        given = findings.model.training
        when = RunMode(seen.training, seen.gradients).text(given)
        self.sets_mode, self.other_mode = seen.training != given, bool(when)
        self.when = f" {when}" if when else ""
        if seen.method:
            self.when = f' in the method "{seen.method}"{self.when}'
        elif seen in findings.observed.more:
            self.when = " on further inputs"
        self.began = self.when

    def run(self, faker: Faker | Real) -> None:
        """Run all nodes, and once more where the original has left a state that a second call reads."""
        with same_attributes(self.draft.module):
            module = copy_module(self.draft.module, faker.of_state)
            with in_mode(module, self.seen.training) if self.sets_mode else contextlib.nullcontext():
                self._run_calls(module, faker)

    def _run_calls(self, module: nn.Module, faker: Faker | Real) -> None:
        self.scopes.follow(module, "")
        for seen in self.seen.calls:
            if seen is not self.seen:
                self.seen = seen
                self.when = f" in a second call{self.when}"
                self.scopes.restart()
            decisions = (random_decisions(),) if self.other_mode or self.seen.method else ()
            modes = (
                *decisions,
                noted_contexts(self.contexts, self.scopes),
                self.scopes.watching(),
                self.refused,
                self.check,
            )
            with told_seeds():
                gradients = self.seen.gradients
                walk(self.draft.graph, module, faker, self.values, self.visit, modes, gradients=gradients)

    def settle(self, node: fx.Node, before: fx.Node, observation: Observation) -> None:
        """Settle the sizes of a node before it runs: nothing, where sizes are only checked."""

    def visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        """Settle a node, run it, and compare what it gives with what the analysis promises."""
        before = self.draft.before[node]
        observation = self.seen.observations[before.name]
        self.scopes.node(before.name)
        self.check.expected = Observation() if node.target in _LOOSE else self._expected(observation)
        try:
            self.settle(node, before, observation)
            result = self.results[node] = execute()
        except ContradictionError as error:
            line = raised_at(error)
            raise self._contradiction(before, node, str(error), self.scopes.current.path, error, line) from None
        except RewriteError:
            raise
        except Exception as error:
            path, line = self.scopes.current.path, raised_at(error)
            raise self._contradiction(before, node, text_of(error), path, self.refused, line) from error
        self._check(node, before, result)
        if node.op == "output" and not self.findings.captured.real:
            of = self.findings.captured.graph.process_outputs
            others = other_numbers(of(self.seen.nodes[before.name]), of(result))
            self.in_result += [(number_note(*other), self.when) for other in others]
        self._check_seeds(node, before)
        self.numbers += [OtherNumber(changed, before, node, self.seen) for changed in self.check.changed]
        self.check.changed.clear()
        return result

    def _expected(self, observation: Observation) -> Observation:
        """Returns the part of what the analysis has seen that the operations of a node have to match."""
        return observation

    def _check(self, node: fx.Node, before: fx.Node, result: Any) -> None:
        """Compare the result of a node with what the analysis promises."""
        promised = leaves(self.seen.nodes[before.name], Operand)
        shapes = [tuple(of_no_level(tensor).shape) for tensor in tensors_in(result)]
        counts = [self.removal.shape(operand.vectors) for operand in promised if isinstance(operand, Operand)]
        if shapes != counts:
            why = f"its result has shape {shapes}, the analysis promises {counts}"
            raise self._contradiction(before, node, why, "")

    def _check_seeds(self, node: fx.Node, before: fx.Node) -> None:
        """Compare the seeds of forward's own with those of the original."""
        for key, seed, now in self.check.seeds:
            self.drawn[key] = now
            other = other_seed(key, seed, now, self.widths, self.removal)
            if other is not None and other.widths:
                raise self._made_of_a_width(other, before, node)
            if other is not None:
                self.unexplained.append((other, before, node))
        self.check.seeds.clear()

    def _made_of_a_width(self, other: OtherSeed, before: fx.Node, node: fx.Node) -> RewriteError:
        scope = other.key[0].partition("|")[0]
        return contradiction(before, node, f"{other}{self.when}", scope, other.widths, WRITE_THE_SEED, other=OF_A_WIDTH)

    def check_unexplained(self, faker: Faker | Real) -> None:
        """Raise `RewriteError` for a seed that is another one than in the original, and the same in a further run.

        Such a seed is made of widths, in a way that is not known, so all of them stay. One of the clock is another one
        in each run.
        """
        if not self.unexplained:
            return
        again = _Checking(self.draft, self.findings, self.removal, self.of)
        again.run(faker)
        for other, before, node in self.unexplained:
            if again.drawn.get(other.key) == other.after:
                every = tuple(v for v in self.widths if self.removal.count(v) != v.size)
                raise self._made_of_a_width(replace(other, widths=every), before, node)

    def _never_ran(self, path: str, before: fx.Node) -> bool:
        """True for the path of a module inside a node, if the original did not run it in that node."""
        if not path or path.startswith("%"):
            return False
        return all(key[0].partition("|")[0] != path for key in self.seen.observations[before.name].outputs)

    def _contradiction(
        self,
        before: fx.Node,
        node: fx.Node,
        why: str,
        scope: str,
        wrong: ContradictionError | RefusedSizes | None = None,
        line: str = "",
    ) -> RewriteError:
        """The error about a node. wrong: what is known of the operation inside it. line: of the user's code."""
        first, *more = why.split("\n")
        path = scope.partition("|")[0]
        if self._never_ran(path, before):
            first = f"it runs {path}, and the original does not on these inputs: {first}"
            return contradiction(before, node, first + self.when, scope, (), DECIDES, line, OTHERWISE)
        error = contradiction(before, node, "\n".join([first + self.when, *more]), scope, line=line)
        if wrong is not None:
            error.operation, error.places = wrong.operation, wrong.places
            error.vectors = wrong.vectors if isinstance(wrong, ContradictionError) else ()
        return error


class _Running(_Checking):
    """A run on real tensors, which has to end without an exception. Other decisions may give other shapes."""

    def _expected(self, observation: Observation) -> Observation:
        """The numbers and seeds alone."""
        return Observation(numbers=observation.numbers, seeds=observation.seeds)

    def _check(self, node: fx.Node, before: fx.Node, result: Any) -> None:
        """Leave out what was counted in tensors. The numbers of the result are compared with those of the reference."""
        changed = self.check.changed
        changed[:] = [number for number in changed if from_a_width(number, self.widths, self.removal)]


class _Settling(_Checking):
    """The run on the first example inputs, in the mode of the model, in which the sizes of nodes are settled too."""

    def __init__(self, draft: Draft, findings: Findings, removal: Removal) -> None:
        super().__init__(draft, findings, removal, findings.observed.main)

    def settle(self, node: fx.Node, before: fx.Node, observation: Observation) -> None:
        """Settle the sizes among the arguments of a call."""
        if node.op not in ("call_function", "call_method") or self.seen is not self.findings.observed.main:
            return
        nodes = self.seen.nodes

        def value(argument: Any) -> Any:
            return fx.map_arg(argument, lambda n: self.results[n]) if argument is not None else None

        def operand(argument: Any) -> Any:
            return nodes[self.draft.before[argument].name] if isinstance(argument, fx.Node) else argument

        site = Site(node, before, self.removal, nodes[before.name], observation.counts, value, operand)
        try:
            resize(site)
        except (LookupError, ValueError):
            if not any(of_no_level(t) is not t for n in node.all_input_nodes for t in tensors_in(self.results[n])):
                raise  # in a `vmap`, sizes in the arguments are those of one sample; `_check` sees if they are wrong


def contradiction(
    before: fx.Node,
    node: fx.Node,
    why: str,
    scope: str,
    vectors: tuple[Vector, ...] = (),
    do: str = "",
    line: str = "",
    other: str = "",
) -> RewriteError:
    """The error to raise where the smaller graph is not what the analysis promises.

    before, node: a node of the original, and its copy. scope: the module inside which it goes wrong.
    vectors: the dimensions that have to keep their size for it to go right; empty where they are unknown.
    do: what its user can do; by default what helps where forward has a size as a number.
    line: the line of the user's code inside a node that runs a module; "" if it is unknown.
    other: the cause in a few words, where it is not that sizes cannot be recounted.
    """
    inside = f", in {scope}" if scope and not scope.startswith("%") and scope != before.target else ""
    call = "" if before.target == WHOLE_MODEL else f" ({source_of(before)}), %{before.name}: {node.format_node()}"
    return RewriteError(
        other or "the smaller graph is not what the analysis promises",
        node=before.name,
        scope=scope,
        vectors=vectors,
        line=line,
        at=f"{module_of(before) or 'the model'}{call}{inside}{f' ({line})' if line and line not in call else ''}",
        why=why,
        do=do or _read_the_size(before),
        held=other or SIZES,
    )


def _read_the_size(before: fx.Node) -> str:
    graph = 'take a graph (prefer="graph"), whose sizes can be changed, ' if before.target == WHOLE_MODEL else ""
    read = "read a size that forward has as a number from a tensor or an attribute, "
    return f"{read}{graph}or `ignore` the layers whose channels enter here"


def _erase_unused(graph: fx.Graph, had_users: set[fx.Node]) -> None:
    """Erase nodes that lost all their users: they computed sizes that are numbers now.

    Nodes that never had users stay, since they may have side effects.
    """
    for node in reversed(graph.nodes):
        if node in had_users and not node.users and node.op in ("call_function", "call_method", "get_attr"):
            graph.erase_node(node)
