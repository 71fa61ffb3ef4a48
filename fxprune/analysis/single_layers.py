"""The analysis for the path "hooks": the outputs of each layer are a group of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from fxprune.analysis.counter import Counter, Found
from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.hookable import hookable
from fxprune.analysis.observed import Contraction, Observation, Walked
from fxprune.analysis.observer import IN_RESULT
from fxprune.analysis.opened import Opened
from fxprune.analysis.origins import Origins
from fxprune.analysis.results import Results
from fxprune.analysis.uses import Uses
from fxprune.capture.output_paths import Outputs, tensors_that_count
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Scope
from fxprune.capture.values import tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector


def analyze_single_layers(subject: Subject, *, strict: bool) -> Findings:
    """Findings in which the outputs of each hookable layer are one group. All other dimensions are locked.

    Only the weight and the bias of that layer shrink, because a forward hook fills up its output with zeros. Layers
    whose output reaches a result of the model are locked too, if that part of the result counts: see `Origins`.
    """
    opened = Opened(subject, strict=strict)
    results, locking, counted = _run(opened)
    weights = {path: f"{path}.weight" for path, _ in hookable(subject.captured.module)}
    vectors = opened.vectors()
    _lock_all_but_outputs(opened, weights, locking, vectors)
    observations = {node.name: Observation() for node in subject.captured.graph.nodes}
    observations["forward"].contractions.extend(
        _scaled(opened.terms, *found, vectors.get((weights.get(found[0], ""), 0))) for found in counted
    )
    opened.observer.used.update(id(fake) for fake, _ in opened.axes)
    notes = (*subject.captured.notes, *filter(None, [results.note()]))
    blank, training = {name: Observation() for name in observations}, subject.model.training
    others = [Walked(training, call.inputs, {}, blank, call.name) for call in subject.methods]
    main = Walked(training, subject.inputs, {}, observations)
    return opened.findings(main, Uses(), notes, results, others)


def _run(opened: Opened) -> tuple[Results, set[str], list[Found]]:
    """Run the model once on its example inputs, and the other methods that are observed.

    Returns its results; the paths of the layers whose output reaches a result that counts as an output; and all
    multiply-adds of forward.
    """
    captured, scopes = opened.subject.captured, opened.scopes
    layers = {path for path, _ in hookable(captured.module)}
    origins = Origins(map(opened.faker.tensor, opened.tensors.values()))

    def leave(scope: Scope, args: Any, kwargs: Any, output: Any) -> None:
        if scope.name in layers:
            origins.made_by(scope.name, tensors_in(output))

    scopes.on_enter, scopes.on_leave = lambda scope: None, leave
    counter, recorder = Counter(scopes), opened.observer.recorder
    scopes.on_attention = lambda key, named, made: recorder.attention(key, named, made, 0, scopes.current)

    def seen(func: Any, arguments: dict[str, Any], made: Any) -> None:
        origins.seen(func, arguments, made)
        recorder.record(
            scopes.current.next_key(func._schema.name), func, arguments, tensors_in(made), 0, scopes.current
        )

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        result = execute()
        if node.op == "placeholder":
            recorder.given(tensors_in(result))
            origins.given(tensors_in(result))
        return result

    def run(values: list[Any]) -> Any:
        modes = (scopes.watching(), counter)
        with clean_caches(opened.subject.model):
            return walk(captured.graph, opened.module, opened.faker, values, visit, modes)

    counter.seen = seen
    result, paths = run(captured.arguments(opened.subject.inputs)), opened.subject.outputs
    recorder.result(tensors_in(result))
    recorder.keep_run()
    counted = list(counter.found)
    outputs = None if paths is None else Outputs.of(result, paths)
    shapes = () if outputs is None else ((path, tuple(tensor.shape)) for path, tensor in outputs.others(result))
    others = tuple((path, tuple(opened.terms.fixed(size) for size in shape)) for path, shape in shapes)
    ending = list(tensors_that_count(outputs, result))
    for call in opened.subject.methods:
        opened.reopen()
        ending += tensors_in(run(captured.arguments(call.inputs, call.name)))
    recorder.forget()
    return Results(outputs, others), origins.reaching(ending), counted


def _lock_all_but_outputs(
    opened: Opened, weights: dict[str, str], results: set[str], vectors: dict[tuple[str, int], Vector]
) -> None:
    """Lock all dimensions but the outputs of hookable layers, and unify the bias of each with the rows of its weight.

    weights: path of a hookable layer -> name of its weight. results: paths of the layers that make results.
    vectors: as `Opened.vectors` returns them.
    """
    terms, free = opened.terms, {f"{path}.{leaf}" for path in weights for leaf in ("weight", "bias")}
    event = opened.observer.event("hooks", "layers are looked at one by one, so only their own outputs can go")
    for (name, dim), vector in vectors.items():
        if name not in free or dim:
            terms.lock(vector, event)
    event = opened.observer.event("output", IN_RESULT)
    for path, weight in weights.items():
        if path in results and (weight, 0) in vectors:
            terms.lock(vectors[weight, 0], event)
        if (f"{path}.bias", 0) in vectors and (weight, 0) in vectors:
            terms.same(vectors[weight, 0], vectors[f"{path}.bias", 0])


def _scaled(terms: Terms, path: str, op: str, macs: int | None, rows: Vector | None) -> Contraction:
    """The multiply-adds of one operation.

    They are proportional to the outputs of the layer that runs it, whose vector is `rows`; None if the layer cannot
    shrink, and the number is constant.
    """
    if macs is None:
        return Contraction(op, path, None)
    shares = (terms.fixed(macs),) if rows is None else (terms.fixed(macs // rows.size), rows)
    return Contraction(op, path, [shares])
