"""Experts of a mixture on data: how often the router chooses each, and how much each adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_arguments
from fxprune.capture.inputs import normalize
from fxprune.errors import InputError, PlanError, nearest
from fxprune.running.inputs import called, each_batch, not_finite

RemovedIndices = Mapping[str, Mapping[int, Sequence[int]]]
"""Parameter -> {dimension: the indices that go}, as in `plan.removed`."""


@dataclass(frozen=True)
class ExpertCalls:
    """The calls of one module of experts.

    tokens: how many it was given. chosen: for each expert how many of them it got. added: the sum over these of the
    weight that the router gives, times the norm of what the expert makes.
    """

    tokens: int
    chosen: Tensor
    added: Tensor


@dataclass(frozen=True, eq=False)
class ExpertImportance:
    """An importance of whole experts, for `fxprune.transform` and `analysis.plan`.

    calls: path of a module of experts -> what they did. scores: the same paths -> one score per expert, higher = keep.
    protected: the same paths -> experts that stay whatever their score is.

    A group of several experts (those of a router that is limited to groups) has the mean of their scores.
    """

    calls: Mapping[str, ExpertCalls] = field(repr=False)
    scores: Mapping[str, Tensor] = field(repr=False)
    protected: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, group: Group) -> Tensor:
        """One score per channel, float64 [group.size]. Raises `PlanError` for a group that is not of experts."""
        member = next(self._experts_in(group), None)
        if member is None:
            raise PlanError(
                "a group is not of experts",
                at=f'group "{group.name}"',
                why=f"experts were seen in {', '.join(list(self.scores)[:3])}",
                do="name the groups of experts alone: counts=dict.fromkeys(importance.groups(analysis), 6)",
            )
        path = member.parameter.rpartition(".")[0]
        values = self.scores[path]
        sums, ones = member.per_channel(values), member.per_channel(torch.ones_like(values))
        kept = torch.zeros_like(values)
        kept[list(self.protected.get(path, ()))] = 1
        return torch.where(member.per_channel(kept) > 0, values.max() + 1, sums / ones)

    def refuse_lost(self, kept: Mapping[str, Mapping[int, Any]]) -> None:
        """Raises `PlanError` where protected experts would go. kept: parameter -> dimension -> a flag per slot."""
        for name, dims in kept.items():
            path = name.rpartition(".")[0]
            lost = [expert for expert in self.protected.get(path, ()) if 0 in dims and not dims[0][expert]]
            if lost:
                raise PlanError(
                    "the request leaves too few experts for those that are protected",
                    at=f'"{path}"',
                    why=f"{len(self.protected[path])} are protected, and of these {lost} would go",
                    do="let more experts stay, or protect fewer",
                )

    @checks_arguments("findings")
    def groups(self, findings: Findings) -> tuple[str, ...]:
        """The keys of the groups of experts of an analysis, for `counts` and `ratio`."""
        return tuple(group.key for group in findings.groups if any(self._experts_in(group)))

    def _experts_in(self, group: Group) -> Iterator[Member]:
        """The members of a group that are stacks of experts."""
        for member in group.members:
            values = self.scores.get(member.parameter.rpartition(".")[0])
            if values is not None and member.dim == 0 and len(values) == len(member.tensor):
                yield member

    @checks_arguments()
    def retained(self, removed: RemovedIndices) -> dict[str, tuple[int, float, float]]:
        """The rest of each module of experts: how many stay, their share of the choices, and of what is added.

        removed: that of a plan or of a record. The shares are those on the data, before the router chooses again.
        """
        found = {}
        for path, calls in self.calls.items():
            gone = {i for n, dims in removed.items() if n.rpartition(".")[0] == path for i in dims.get(0, ())}
            left = [expert for expert in range(len(calls.chosen)) if expert not in gone]
            shares = [float(part[left].sum() / part.sum()) for part in (calls.chosen, calls.added)]
            found[path] = len(left), shares[0], shares[1]
        return found

    @checks_arguments()
    def table(self, removed: RemovedIndices) -> str:
        """`retained` as a text, one row for each module of experts."""
        from tabulate import tabulate

        rows = [(path, n, len(self.calls[path].chosen), *s) for path, (n, *s) in self.retained(removed).items()]
        headers = ("experts", "stay", "of", "choices", "added")
        return tabulate(rows, headers=headers, floatfmt=("", "", "", ".3f", ".3f"))


def expert_calls(
    model: nn.Module, batches: Iterable[Any], *, norms: bool, progress: bool = False
) -> dict[str, ExpertCalls]:
    """The calls of the experts of a model on batches, by the path of the module that has them.

    A module of experts has a stack of matrices, and is called with tokens, the numbers of the experts that the router
    has chosen for each, and their weights, as those of `transformers`. The model runs in evaluation mode.

    norms: True to measure what each expert adds, which runs the experts once more for each choice of a token.
    Raises `PlanError` for a model without such a module, `InputError` for what is not finite.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model must be a torch.nn.Module, not {type(model).__name__}",
            do="pass the model whose experts are counted",
        )
    seen: dict[str, ExpertCalls] = {}
    number = 0

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
            given = _given(args, kwargs)
            if given is not None:
                new = _of_one_call(module, *given, norms=norms)
                if not bool(new.added.isfinite().all()):
                    raise not_finite(path, f"batch {number}")
                seen[path] = _sum(seen.get(path), new)

        return hook

    stacks = {
        path: module
        for path, module in model.named_modules()
        if any(p is not None and p.ndim == 3 for p in module._parameters.values())
    }
    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(note(path), with_kwargs=True) for path, module in stacks.items()]
    try:
        model.eval()
        with torch.no_grad():
            for number, batch in each_batch(batches, what="experts", progress=progress):
                called(model, normalize(batch), number)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise PlanError(
            "the model has no experts that can be ranked",
            why="no module has a stack of matrices, and is called with tokens, chosen experts and their weights",
            do="choose another importance",
        )
    return seen


def checked_protected(
    protect: Mapping[str, Sequence[int]] | None, calls: Mapping[str, ExpertCalls]
) -> dict[str, tuple[int, ...]]:
    """The experts that stay, by module. Raises `PlanError` for a module or an expert that there is not."""
    found = {}
    for path, experts in (protect or {}).items():
        if path not in calls:
            raise PlanError(
                f'there are no experts "{path}"', at="protect", why=nearest(path, calls), do="name a module of experts"
            )
        count = len(calls[path].chosen)
        wrong = [expert for expert in experts if not 0 <= expert < count]
        if wrong:
            raise PlanError(
                f"there is no expert {wrong[0]}",
                at=f'protect: "{path}"',
                why=f"it has {count} experts",
                do=f"pass numbers from 0 to {count - 1}",
            )
        found[path] = tuple(experts)
    return found


def _given(args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """The tokens, the chosen experts and their weights that a module was called with; None for another call."""
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(values) != 3 or any(value.ndim != 2 for value in values):
        return None
    tokens, chosen, weights = values
    fits = chosen.shape == weights.shape and len(tokens) == len(chosen) and not chosen.is_floating_point()
    return (tokens, chosen, weights) if fits and weights.is_floating_point() else None


def _of_one_call(module: nn.Module, tokens: Tensor, chosen: Tensor, weights: Tensor, *, norms: bool) -> ExpertCalls:
    count = next(len(p) for p in module._parameters.values() if p is not None and p.ndim == 3)
    numbers, added = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for choice in range(chosen.shape[1]):
        experts = chosen[:, choice].cpu()
        numbers += torch.bincount(experts, minlength=count).double()
        if norms:
            ones = torch.ones_like(weights[:, :1])
            made = module.forward(tokens, chosen[:, choice : choice + 1], ones)
            sizes = made.double().norm(dim=-1) * weights[:, choice].double()
            added.index_add_(0, experts, sizes.cpu())
    return ExpertCalls(len(tokens), numbers, added)


def _sum(before: ExpertCalls | None, new: ExpertCalls) -> ExpertCalls:
    if before is None:
        return new
    return ExpertCalls(before.tokens + new.tokens, before.chosen + new.chosen, before.added + new.added)
