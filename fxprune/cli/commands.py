"""The commands. Each takes the options and returns the text for stdout and an exit code; progress goes to stderr."""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tabulate import tabulate
from torch import fx, nn

import fxprune
from fxprune._record import Record
from fxprune._repair.original import differs_beyond_repair, has_other_weights
from fxprune._verify import compared
from fxprune.artifacts.graph_export import FORMATS
from fxprune.artifacts.weights import record_in
from fxprune.cli import models
from fxprune.cli.choices import choices_of, uniform_of
from fxprune.cli.data import check_data, data_of, measure_scores
from fxprune.cli.making import model_and_inputs
from fxprune.cli.output_files import check_readable, check_small, check_writable
from fxprune.cli.pages import check_page, page_of_record, write_page
from fxprune.cli.small_output import check_keeps_class, check_saves, check_small_output, class_expected, write_small
from fxprune.cli.tables import with_branches, with_layers
from fxprune.cli.usage import UsageError, check_amounts, ratio_of
from fxprune.costs import peak_memory
from fxprune.errors import FileError, FxpruneError, OtherWeightsWarning
from fxprune.planning.budgets import above
from fxprune.planning.figures import with_measured
from fxprune.planning.plan import Plan, Removed
from fxprune.planning.scopes import SEARCH
from fxprune.report.data import Change
from fxprune.report.repeats import blocks_of, merge_repeats
from fxprune.report.text import change

DONE, ERROR, USAGE, NOTHING, WRONG, ABOVE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
"""Exit codes; docs/cli.md explains them."""

NO_PLAN = (".pt", ".pth", ".pkl", ".pt2", ".onnx", ".bin")
"""Suffixes of files that hold no plan."""

NOT_MEASURED = (
    "compared with the original whose removed channels are zero, not with the original: its accuracy is not measured, "
    "see --repair and `fxprune summary --score`"
)
"""The end of the report on a small model that was not repaired."""

Say = Callable[[str], None]
"""Writes a line to stderr."""


@dataclass(frozen=True)
class Answer:
    """The text that a command prints on stdout, and its exit code."""

    text: str
    code: int = DONE


def inspect(options: argparse.Namespace, say: Say) -> Answer:
    """Reports an analysis; with a plan, also the cost that the plan would leave."""
    check_readable(options.weights, options.plan)
    check_page(options.html, [path for path in (options.weights, options.plan) if path is not None])
    plan = None if options.plan is None else _plan(options.plan)
    model, inputs = model_and_inputs(options, say)
    say("analysing")
    chosen = {name: getattr(options, name) for name in ("path", "prefer", "norms", "strict", "outputs")}
    if plan is not None and options.path is None and options.prefer is None and not isinstance(model, fx.GraphModule):
        chosen["path"] = plan.path or None  # the names in a plan are those of its path
    if plan is not None and options.norms is None:
        chosen["norms"] = plan.norms
    if plan is not None and plan.outputs is not None and options.outputs is None:
        chosen["outputs"] = list(plan.outputs)
    analysis = fxprune.analyze(model, inputs, **chosen)
    write_page(options.html, lambda: analysis.report("html", plan=plan), say)
    report = with_branches(analysis.report(options.format), analysis.branches(), options.format)
    report = with_layers(report, json.loads(analysis.report("json"))["layers"], options.format)
    if plan is None:
        return Answer(report)
    before, after = analysis.cost(), analysis.cost(plan)
    totals = {name: Change(getattr(before, name), getattr(after, name)) for name in ("params", "bytes", "macs")}
    if options.format == "json":
        left = {name: asdict(figures) for name, figures in totals.items()} | {"removed": _counts(plan)}
        return Answer(_json({**json.loads(report), "plan": left}))
    rows = []
    for name in dict.fromkeys((*before.layers, *after.layers)):
        old, new = before.layers.get(name), after.layers.get(name)
        if old is not None and new is not None and old != new:
            rows.append((name or "(model)", change(Change(old.params, new.params)), change(Change(old.macs, new.macs))))
    table = [
        *merge_repeats(rows, blocks_of(before.layers)),
        ("total", change(totals["params"]), change(totals["macs"])),
    ]
    style = "github" if options.format == "markdown" else "simple"
    text = tabulate(table, headers=("layer", "params", "MACs"), tablefmt=style, disable_numparse=True)
    gap = "\n\n" if options.format == "markdown" else "\n"
    return Answer(f"{report}\n\nwith the plan {options.plan}:{gap}{text}")


def prune(options: argparse.Namespace, say: Say) -> Answer:
    """Writes a smaller model to a file, and reports its record."""
    chosen = choices_of(options)
    check_readable(options.weights, options.plan, options.scores)
    _check_outputs(options)
    if options.plan is not None:
        chosen["plan"] = _plan(options.plan)
    check_keeps_class(options.output, options.prefer, options.path, chosen.get("plan"))
    if options.repair is None and options.repair_mode is not None:
        raise UsageError("--repair-mode is without effect here", why="nothing is repaired", do="add --repair")
    check_data(options)
    chosen |= _search(options)
    model, inputs = model_and_inputs(options, say, by_weights=True)
    check_saves(options.output, model)
    chosen |= data_of(options)
    if chosen.pop("save_scores", None) is not None:
        say("measuring scores")
        chosen = measure_scores(options, chosen, model, inputs)
        say(f"wrote {options.save_scores}")
    say("pruning" if options.verify else "pruning, without a proof")
    chosen |= {name: getattr(options, name) for name in ("path", "prefer", "norms", "strict", "verify", "outputs")}
    with class_expected(options.output):
        small = fxprune.transform(model, inputs, **chosen)
    made = fxprune.record(small)
    files: dict[str, str | None] = {"output": None, "plan": None}
    if made.plan:
        size = write_small(small, options.output)
        files["output"] = options.output
        say(f"wrote {options.output} ({size} bytes)")
        if options.save_plan is not None:
            made.plan.save(options.save_plan)
            files["plan"] = options.save_plan
            say(f"wrote {options.save_plan}")
    else:
        say("nothing was written")
    figures = _with_memory(made, model, small, inputs, say)
    write_page(options.html, lambda: page_of_record(figures, model, inputs, strict=options.strict), say)
    report = figures.report(options.format)
    text = _json({**json.loads(report), "files": files}) if options.format == "json" else report
    if options.format == "text" and made.plan and options.repair is None and not (options.masks or options.quiet):
        text += f"\n{NOT_MEASURED}"
    known = None if made.cost is None or not options.keep else with_measured(made.cost, made.measured)
    missed = known is not None and above(*known, dict(options.keep))
    return Answer(text, NOTHING if not made.plan else ABOVE if missed else DONE)


def _check_outputs(options: argparse.Namespace) -> None:
    """Raises if a file that `prune` writes cannot be written."""
    read = [path for path in (options.weights, options.plan, options.scores) if path is not None]
    check_small_output(options.output, read)
    for path in (options.save_scores, options.save_plan):
        if path is not None:
            check_writable(path, (".json",), read, (options.output,))
    check_page(options.html, read, (options.output,))


def _search(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of a search. Raises `UsageError` for those without effect, and for a search without data."""
    given = {"steps": options.search_steps, "file": options.search_file}
    given = {name: value for name, value in given.items() if value is not None}
    if options.scope != SEARCH:
        for name in given:
            why = "nothing is searched"
            raise UsageError(f"--search-{name} is without effect here", why=why, do="add --scope search")
        return {}
    if options.repair is None:
        why = "it measures small models after their repair"
        raise UsageError("--scope search needs --repair", why=why, do="add --repair package.module:loader")
    if options.search_file is not None:
        check_writable(options.search_file, (".json",), (), (options.output,))
    return {"search": {**given, "progress": not options.quiet}}


def _with_memory(made: Record, model: nn.Module, small: nn.Module, inputs: Any, say: Say) -> Record:
    """A record for a report, with the peak memory of both models."""
    if "memory" in made.measured:
        return made
    try:
        memory = peak_memory(model, inputs), peak_memory(small, inputs)
    except FxpruneError as error:
        say(f"the peak memory is not known: {error.what}")
        return made
    return replace(made, measured={**made.measured, "memory": memory})


def verify(options: argparse.Namespace, say: Say) -> Answer:
    """Reports the relative error of a small model against its masked original."""
    check_readable(options.weights)
    check_small(options)
    model, inputs = model_and_inputs(options, say)
    small = _small(options.small, model, inputs, say)
    told = _compare_weights(options, model, small)
    say("comparing in float64")
    with warnings.catch_warnings():
        if told:  # in the words of the command line
            warnings.filterwarnings("ignore", ".* was made from other weights", OtherWeightsWarning)
        proof = compared(model, small, inputs, outputs=options.outputs)
    error = proof.error
    tolerance = proof.precision.tolerance if options.tolerance is None else options.tolerance
    passed = error <= tolerance
    if options.format == "json":
        known = error if math.isfinite(error) else None
        figures = {"error": known, "tolerance": tolerance, "precision": proof.precision.name, "passed": passed}
        text = _json({"schema": "fxprune.verify/1", **figures})
    else:
        sign, word = ("<=", "right") if passed else (">", "wrong")
        text = f"{word}: relative error {error:.1e} {sign} {tolerance:g}"
    return Answer(text, DONE if passed else WRONG)


def export(options: argparse.Namespace, say: Say) -> Answer:
    """Writes a model, or a small model from a file, as a graph that runs without its code."""
    check_readable(options.weights)
    check_small(options)
    read = [path for path in (options.weights, options.small) if path is not None]
    check_writable(options.output, tuple(FORMATS), read)
    if options.opset is not None and not options.output.endswith(".onnx"):
        raise UsageError("--opset is for .onnx files", why=f'the output is "{options.output}"', do="leave it out")
    model, inputs = model_and_inputs(options, say, by_weights=options.small is None)
    if options.small is not None:
        model = _small(options.small, model, inputs, say)
    say(f"exporting {options.output}")
    batch: dict[str, Any] = {"dynamic_batch": options.dynamic_batch, "opset": options.opset}
    made = fxprune.export(model, options.output, inputs, **batch, verify=options.verify, tolerance=options.tolerance)
    if options.format == "json":
        known = {name: getattr(made, name) for name in ("path", "format", "bytes", "error", "reasons")}
        return Answer(_json({"schema": "fxprune.export/1", **known, "operators": dict(made.operators)}))
    error = "unknown, it was not compared" if made.error is None else f"{made.error:.1e}"
    counted = ", ".join(f"{count} {name}" for name, count in made.operators.items())
    lines = [f"{made.path}: {made.format}, {made.bytes} bytes", f"operators: {counted}"]
    lines += [f"relative error against the model: {error}", *(f"note: {reason}" for reason in made.reasons)]
    return Answer("\n".join(lines))


def summary(options: argparse.Namespace, say: Say) -> Answer:
    """Reports the figures of a model and of a small model from a file, side by side."""
    check_readable(options.weights)
    check_small(options)
    score = None if options.score is None else models.function(options.score, "--score")
    model, inputs = model_and_inputs(options, say)
    small = _small(options.small, model, inputs, say)
    _compare_weights(options, model, small)
    say("measuring")
    return Answer(fxprune.summary(model, small, inputs, score, rounds=options.rounds).report(options.format))


def sensitivity(options: argparse.Namespace, say: Say) -> Answer:
    """Reports the score against the ratio, group by group."""
    model, inputs, chosen = _measured(options, say)
    found = fxprune.sensitivity(model, inputs, ratios=options.ratios, groups=options.groups, **chosen)
    return _curves(options, found, say)


def pareto(options: argparse.Namespace, say: Say) -> Answer:
    """Reports the score against a cost, over budgets."""
    check_amounts(options.key, options.budgets)
    model, inputs, chosen = _measured(options, say)
    for name in ("scope", "min_channels", "max_ratio"):
        if getattr(options, name) is not None:
            chosen[name] = getattr(options, name)
    chosen |= uniform_of(options.uniform)
    found = fxprune.pareto(model, inputs, budgets=options.budgets, key=options.key, **chosen)
    answer = _curves(options, found, say)
    return Answer(answer.text, DONE if all(point.met for point in found.points) else ABOVE)


def _measured(options: argparse.Namespace, say: Say) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Returns the model, the example inputs, and the options of a measurement."""
    check_readable(options.weights)
    read = [path for path in (options.weights,) if path is not None]
    others = [path for path in (options.file,) if path is not None]
    if options.file is not None:
        check_writable(options.file, (".json",), read)
    if options.plot is not None:
        check_writable(options.plot, (".png", ".svg", ".pdf"), read, others)
    if options.score is None and options.repair is None:
        why = "neither --score nor --repair is given"
        raise UsageError("there is nothing to measure by", why=why, do="add --score package.module:function")
    check_data(options)
    chosen: dict[str, Any] = {"score": None if options.score is None else models.function(options.score, "--score")}
    model, inputs = model_and_inputs(options, say, by_weights=True)
    for name in ("importance", "round_to", "ignore"):
        if getattr(options, name):
            chosen[name] = getattr(options, name)
    say("measuring")
    chosen |= {"file": options.file, "progress": not options.quiet, "seed": options.seed}
    return model, inputs, {**chosen, **data_of(options)}


def _curves(options: argparse.Namespace, found: Any, say: Say) -> Answer:
    """Returns the result of a measurement as text; draws it if that is asked for."""
    if options.plot is not None:
        found.plot(options.plot)
        say(f"wrote {options.plot}")
    return Answer(found.to_json() if options.format == "json" else found.table())


def stream(options: argparse.Namespace, say: Say) -> Answer:
    """Writes a pruned checkpoint into a directory, tensor by tensor."""
    check_readable(options.plan)
    asked = {"keep": dict(options.keep or ()), "ratio": ratio_of(options.ratio), "importance": options.importance}
    asked |= {"uniform": options.uniform, "round_to": options.round_to}
    asked = {name: value for name, value in asked.items() if value}
    if (options.plan is None) == (not asked):
        why = "it says what is removed" if options.plan is not None else "nothing says what is removed"
        raise UsageError("say either --plan, or --keep or --ratio", why=why, do="see `fxprune stream --help`")
    plan = asked if options.plan is None else _plan(options.plan)
    say(f"reading {options.directory}")
    chosen = {name: getattr(options, name) for name in ("memory", "workers", "shard_size", "checksum")}
    done = fxprune.stream(options.directory, plan, options.output, progress=not options.quiet, **chosen)
    if options.format == "json":
        data = {**asdict(done), "directory": str(done.directory)}
        return Answer(_json({"schema": "fxprune.stream/1", **data}))
    lines = [str(done), *(f"left out: {name}" for name in done.ignored)]
    return Answer("\n".join(lines))


def diff(options: argparse.Namespace, say: Say) -> Answer:
    """Reports the indices that one plan removes and the other keeps."""
    check_readable(options.first, options.second)
    first, second = _plan(options.first), _plan(options.second)
    found = first.diff(second)
    folds = (first.zeroed, first.biases, first.maps) != (second.zeroed, second.biases, second.maps)
    identical = not found and not folds
    if options.format == "json":
        both: dict[str, Any] = {"only_first": _string_keys(found.only_first)}
        both |= {"only_second": _string_keys(found.only_second), "constants_differ": folds}
        both |= {"norms": list(found.norms)} if found.norms else {}
        return Answer(_json({"schema": "fxprune.diff/1", "identical": identical, **both}))
    text = "identical: both remove the same" if identical else str(found)
    return Answer(text + ("\nconstants are folded differently" if folds else ""))


COMMANDS: dict[str, Callable[[argparse.Namespace, Say], Answer]] = {
    "inspect": inspect,
    "prune": prune,
    "verify": verify,
    "export": export,
    "summary": summary,
    "sensitivity": sensitivity,
    "pareto": pareto,
    "stream": stream,
    "diff": diff,
}


def _small(path: str, model: nn.Module, inputs: Any, say: Say) -> nn.Module:
    say(f"loading {path}")
    return fxprune.load(path, into=model, example_inputs=inputs)


def _compare_weights(options: argparse.Namespace, model: nn.Module, small: nn.Module) -> bool:
    """Warns if a small model has no weight of its original but for those that a repair has changed; True if so."""
    known = fxprune.record(small)
    if known.layers_gone:
        return False
    asked = "were other --weights meant?" if options.weights else "was --weights forgotten?"
    if has_other_weights(model, small, known):
        text = f"{options.small} was made from other weights than those of {options.model}: {asked}"
    elif options.command == "summary" and differs_beyond_repair(model, small, known):  # verify says it with numbers
        text = f"{options.small} was trained after its repair, or made from other weights than those of {options.model}"
        text += f": {asked}"
    else:
        return False
    warnings.warn(text, OtherWeightsWarning, stacklevel=2)
    return True


def _plan(path: str) -> Plan:
    """Returns the plan in a plan file, or in the file of a small model."""
    if os.path.splitext(path)[1].lower() in NO_PLAN:
        do = "pass the .json file that `fxprune prune --save-plan` wrote, or the .safetensors file of a small model"
        raise FileError(f'"{path}" is no plan', why="fxprune writes plans as .json", do=do)
    return record_in(path).plan if path.endswith(".safetensors") else Plan.load(path)


def _counts(plan: Plan) -> dict[str, dict[str, int]]:
    return {name: {str(dim): len(gone) for dim, gone in dims.items()} for name, dims in plan.removed.items()}


def _string_keys(removed: Removed) -> dict[str, dict[str, list[int]]]:
    return {name: {str(dim): list(gone) for dim, gone in dims.items()} for name, dims in removed.items()}


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False)
