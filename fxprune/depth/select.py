"""The branches that a user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn

from fxprune.depth.branches import Branch, nothing_to_drop
from fxprune.errors import PlanError, nearest
from fxprune.names import entries_of, find, matching, names_of, show


def selected(model: nn.Module, branches: Sequence[Branch], patterns: Any) -> tuple[Branch, ...]:
    """The branches that patterns name: by their name, or by a block that holds all layers of them.

    Raises `PlanError` for a pattern that names none, and for one that names only branches that cannot be removed.
    """
    entries = entries_of(patterns)
    if not entries:
        raise PlanError("drop names nothing", why="the list of patterns is empty", do=_what_to_name(branches))
    found: dict[str, Branch] = {}
    for pattern in entries:
        named = _named(model, branches, pattern)
        free = [branch for branch in named if not branch.why_not]
        if not free:
            raise _refused(model, branches, pattern, named)
        found |= {branch.name: branch for branch in free}
    return tuple(branch for branch in branches if branch.name in found)


def entries_of_lists(model: nn.Module, patterns: Any) -> Iterator[str]:
    """The paths of the entries of lists of modules that patterns name, in the order of the model."""
    entries, names = entries_of(patterns), names_of(model)
    for path, module in model.named_modules():
        outer, _, name = path.rpartition(".")
        if name.isdigit() and type(model.get_submodule(outer)) is nn.ModuleList:
            texts = (entry for entry in entries if isinstance(entry, str))
            if any(matching(text, names.spellings(path)) for text in texts) or any(one is module for one in entries):
                yield path


def _named(model: nn.Module, branches: Sequence[Branch], pattern: Any) -> list[Branch]:
    names = {branch.name for branch in branches}
    globbed = {*matching(pattern, names)} if isinstance(pattern, str) else set()
    by_name = [branch for branch in branches if branch.name in globbed]
    if by_name:
        return by_name
    match = find(names_of(model), pattern, what="drop")
    return [branch for branch in branches if all(match.below(layer) for layer in branch.layers)]


def _refused(model: nn.Module, branches: Sequence[Branch], pattern: Any, named: Sequence[Branch]) -> PlanError:
    if named:
        return PlanError(
            "the branch cannot be removed",
            at=", ".join(f"{branch.name}, added in {branch.at}" for branch in named[:3]),
            why="; ".join(dict.fromkeys(branch.why_not for branch in named)),
            do="leave it out of drop, and remove channels of it with ratio or keep",
        )
    why = nothing_to_drop(branches)
    if not branches and isinstance(model, fx.GraphModule) and not _calls_layers(model):
        why = "an exported graph has no modules, of which branches consist: drop them before it is exported"
    if why and not branches:
        return PlanError("the model has no residual branch", at=f"drop={show(pattern)}", why=why, do="leave drop out")
    match = find(names_of(model), pattern, what="drop")
    around = [branch for branch in branches if any(match.below(layer) for layer in branch.layers)]
    if around:
        part = f'it is a part of the branch "{around[-1].name}"'
        return PlanError("drop names no residual branch", at=show(pattern), why=part, do=_what_to_name(around))
    return PlanError(
        "drop names no residual branch",
        at=show(pattern),
        why=nearest(str(pattern), [branch.name for branch in branches]) or "what it names is added to nothing",
        do=_what_to_name(branches),
    )


def _calls_layers(graph: fx.GraphModule) -> bool:
    """True if a node calls a module that has parameters; in an exported graph at most one does that checks inputs."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return any(next(graph.get_submodule(name).parameters(), None) is not None for name in called)


def _what_to_name(branches: Sequence[Branch]) -> str:
    listed = ", ".join(f'"{branch.name}"' for branch in branches[:4])
    return f"name one of {listed}{', ...' if branches[4:] else ''}" if branches else "leave drop out"
