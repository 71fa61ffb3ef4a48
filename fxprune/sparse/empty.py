"""From masks to smaller layers: outputs that nothing reaches and inputs that nobody reads go through the pass.

A channel can go without a change of the result where everybody who reads it does so with weights that are zero (an
empty column), where whoever makes it makes zeros (an empty row without bias, and what comes after maps 0 to 0), or
where a convolution in groups that it passes through is zero. The weights say who is a candidate. The proof is by
experiment: where nobody reads a channel, the result does not depend on the weights that make it, so these are replaced
by random numbers; where it is zero, the result does not depend on the weights that read it. What the experiment
contradicts stays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, analyze
from fxprune.capture.inputs import normalize
from fxprune.channels.groups import Bools
from fxprune.check import TOLERANCE, relative_error
from fxprune.errors import CaptureError
from fxprune.findings import Group, Member
from fxprune.planning.plan import Plan, finish, keep_one_each
from fxprune.sparse.conversion import plain
from fxprune.sparse.masked import Masked, is_masked
from fxprune.transform import transform

CASES = (({"read"}, {"make", "pass", "add"}), ({"make", "add"}, {"read"}), ({"pass", "add"}, {"read", "make"}))
"""Of the roles that a member can have for a channel: those that are zero, and those that then do not matter."""

SCALES = (1.0, 0.1, 10.0)
"""How large the random numbers are; each draw is tried with either sign, so that no relu hides what it says."""


Roles = dict[int, list[tuple[Member, str]]]


def empty_outputs(model: nn.Module) -> dict[str, Tensor]:
    """The masked layers that have outputs without any connection: name -> bool [outputs], False where there is none.

    The dict is what `fxprune.transform` takes as `masks`. Such an output is its bias: without one it is zero.

    >>> from fxprune.sparse import MaskedLinear
    >>> empty_outputs(nn.Sequential(MaskedLinear(2, 3, torch.tensor([[True, True], [False, False], [False, True]]))))
    {'0': tensor([ True, False,  True])}
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Masked):
            keep = layer.mask.flatten(1).any(1)
            if name and not keep.all():
                found[name] = keep
    return found


def shrink(model: nn.Module, example_inputs: Any, *, path: str | None = None, prefer: str | None = None) -> nn.Module:
    """A physically smaller model that computes the same: channels that masks have cut off are gone.

    What goes are channels that nobody reads (empty columns) and channels that are zero (empty rows without a bias), and
    what was only there for them, as long as their group changes no statistic. Masked layers that have all connections
    then become plain ones. The result equals the model to rounding; see `fxprune.sparse.empty` for the proof. An output
    that is its bias alone is a constant and stays.

    Args:
        model, example_inputs, path, prefer: as of `fxprune.transform`. The model is only read, and looked at in
            evaluation mode, in float64.

    Raises what `transform` raises. Warns with `NothingRemovedWarning`, and says why, when no channel goes.

    >>> from fxprune.sparse import MaskedLinear
    >>> mask = torch.tensor([[True, True], [True, False], [False, False]])
    >>> net = nn.Sequential(MaskedLinear(2, 3, mask, bias=False), nn.ReLU(), MaskedLinear(3, 2, mask.T))
    >>> shrink(net.eval(), torch.randn(1, 2)).get_submodule("2")
    MaskedLinear(in_features=2, out_features=2, bias=True, connections=3/4)
    """
    analysis = analyze(model, example_inputs, path=path)
    plan = _plan(analysis, model, example_inputs)
    small = transform(model, example_inputs, plan=plan, path=path, prefer=prefer)
    made: dict[int, nn.Module] = {}
    for name, layer in list(small.named_modules(remove_duplicate=False)):
        if name and is_masked(layer) and not _hooked(layer) and bool(layer.get_buffer("mask").all()):
            small.set_submodule(name, made.setdefault(id(layer), plain(layer)))
    return small


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _plan(analysis: Analysis, model: nn.Module, example_inputs: Any) -> Plan:
    """The channels that go without a change of the result."""
    roles = {group.number: _roles(analysis, group) for group in analysis.groups}
    exact = [group for group in analysis.groups if group.exact]
    candidates = np.logical_or.reduce(_candidates(analysis, exact, roles))
    agreed = np.zeros_like(candidates)
    if candidates.any():
        agreed = _agreed(analysis, exact, roles, _Experiment(analysis, roles, model, example_inputs))
    removed = agreed.copy()
    keep_one_each(analysis, removed, np.zeros(len(removed)))
    plan = finish(analysis, removed, ())
    reasons = [*_stay(analysis, roles, candidates, agreed, removed), *_constants(model, plan)]
    if not candidates.any():
        reasons.append("no channel is zero, and none is read with zeros only")
    return replace(plan, reasons=tuple(reasons))


def _agreed(analysis: Analysis, groups: list[Group], roles: Roles, experiment: _Experiment) -> Bools:
    """The candidates that the experiment does not contradict; without the others, there may be fewer of them."""
    refuted = np.zeros(analysis.solution.channels, dtype=bool)
    while True:
        agreed, wrong = np.zeros_like(refuted), np.zeros_like(refuted)
        for found, (_, random) in zip(_candidates(analysis, groups, roles, refuted), CASES, strict=True):
            channels = np.flatnonzero(found)
            wrong[experiment.refuted(agreed, channels, random)] = True
            agreed[channels] = True
        if not wrong.any():
            return agreed
        refuted |= wrong


def _stay(analysis: Analysis, roles: Roles, candidates: Bools, agreed: Bools, removed: Bools) -> Iterator[str]:
    """Why channels stay although they are zero or nobody reads them."""
    others = [group for group in analysis.groups if not group.exact]
    inexact = np.logical_or.reduce(_candidates(analysis, others, roles))
    for chosen, why in (
        (inexact, "they count in a statistic"),
        (candidates & ~agreed, "the result depends on them all the same"),
        (agreed & ~removed, "no dimension can be empty"),
    ):
        for group in analysis.groups:
            if count := int(chosen[group.channels].sum()):
                yield f'"{group.name}": {count} channels that are zero, or read with zeros only, stay: {why}'


def _constants(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Outputs that nothing reaches and that stay."""
    for name, keep in empty_outputs(model).items():
        gone = plan.removed.get(f"{name}.weight", {}).get(0, [])
        if count := int((~keep).sum()) - int((~keep[gone]).sum()):
            yield f'"{name}": {count} outputs without a connection stay: they are a constant that something reads'


def _roles(analysis: Analysis, group: Group) -> list[tuple[Member, str]]:
    """The members of numbers of a group, each with what it is for the channels.

    "read": a weight over an input. "make": a weight over an output, a bias, an affine or a statistic. "pass" and "add":
    weight and bias of a convolution in groups that takes the channel in and gives it out.
    """
    roles = []
    for member in group.members:
        if not member.tensor.is_floating_point():
            continue
        opens = member.tensor.ndim == 1 or analysis.opens(member.parameter, member.dim)
        role = "make" if opens else "read"
        if opens and getattr(analysis.owner(member.parameter), "groups", 1) > 1:
            columns = analysis.solution.channels_of(analysis.axis_vector(member.parameter, member.dim))
            if len(columns) < 2 or bool((columns[0] == group.channels[0]).any()):
                role = "pass" if member.tensor.ndim > 1 else "add"
        roles.append((member, role))
    return roles


def _candidates(analysis: Analysis, groups: list[Group], roles: Roles, never: Bools | None = None) -> list[Bools]:
    """Per case of `CASES` the channels that it holds for, but those of `never`; each under the first one only.

    What goes makes zeros of its slots elsewhere, so that others may become candidates.
    """
    values = dict(_magnitudes(analysis))
    found = [np.zeros(analysis.solution.channels, dtype=bool) for _ in CASES]
    settled = found[0].copy() if never is None else never.copy()
    grows = True
    while grows:
        grows = False
        for group in groups:
            gone = np.zeros(group.size, dtype=bool)
            for channels, (zero, _) in zip(found, CASES, strict=True):
                asked = [member for member, role in roles[group.number] if role in zero]
                if any(member.tensor.ndim > 1 for member in asked):
                    fresh = ~_used(group, asked, values) & ~settled[group.channels] & ~gone
                    channels[group.channels] |= fresh
                    gone |= fresh
            settled[group.channels] |= gone
            for member, _ in roles[group.number] if gone.any() else ():
                values[member.parameter].index_fill_(member.dim, _slots(member, gone), 0)
                grows = True
    return found


def _magnitudes(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of numbers as magnitudes in float64; the weight of a masked layer where it is connected."""
    masks = {f"{n}.weight": m.mask for n, m in analysis.model.named_modules() if isinstance(m, Masked)}
    for name, tensor in analysis.tensors.items():
        if tensor.is_floating_point():
            values = tensor.detach()
            yield name, (values * masks[name] if name in masks else values).abs().to(torch.float64, copy=True)


def _used(group: Group, members: list[Member], values: dict[str, Tensor]) -> Bools:
    """Per channel of a group whether any of the members is not zero there."""
    total = np.zeros(group.size)
    for member in members:
        value = values[member.parameter]
        others = [d for d in range(value.ndim) if d != member.dim]
        total += member.per_channel(value.sum(others) if others else value, group.size).cpu().numpy()
    return np.asarray(total != 0)


def _slots(member: Member, chosen: Bools) -> Tensor:
    """The slots of a member that belong to the chosen channels of its group."""
    return torch.from_numpy(member.slots[chosen[member.index]]).to(member.tensor.device)


class _Experiment:
    """The model in float64 and evaluation mode, with other numbers where channels are."""

    def __init__(self, analysis: Analysis, roles: Roles, model: nn.Module, example_inputs: Any) -> None:
        self.analysis, self.roles = analysis, roles
        self.model = copy.deepcopy(model).double().eval()
        args, kwargs = normalize(example_inputs)
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, _double, (args, kwargs))
        self.tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        try:
            self.expected = self._run({})
        except Exception as error:
            raise CaptureError(
                "the model does not run in float64", raised=True, why=str(error), do="see that forward keeps the dtype"
            ) from error

    def refuted(self, agreed: Bools, channels: Any, random: set[str]) -> list[int]:
        """Those of some channels that cannot go together with what was agreed; halves are tried till they are found."""
        if not len(channels) or self._same(agreed, channels, random):
            return []
        if len(channels) == 1:
            return list(channels)
        parts = np.array_split(channels, 2)
        return [c for part in parts for c in self.refuted(agreed, part, random)] or list(parts[1])

    def _same(self, agreed: Bools, channels: Any, random: set[str]) -> bool:
        """Whether the result is the same without what was agreed and these channels, whatever the others say of them.

        random: the roles of the members that take random numbers there.
        """
        tried = np.zeros_like(agreed)
        tried[channels] = True
        if not self._equal(self._zeroed(agreed | tried)):
            return False
        for draw, scale in enumerate(SCALES):
            for sign in (scale, -scale):
                generator = torch.Generator().manual_seed(draw)
                changed = self._zeroed(agreed)
                for member, role, slots in self._members(tried):
                    if role in random:
                        numbers = _random(self.tensors[member.parameter], member.dim, slots, sign, generator)
                        self._new(changed, member).index_copy_(member.dim, slots, numbers)
                if not self._equal(changed):
                    return False
        return True

    def _zeroed(self, chosen: Bools) -> dict[str, Tensor]:
        """Tensors with zeros in the slots of the chosen channels."""
        changed: dict[str, Tensor] = {}
        for member, _, slots in self._members(chosen):
            self._new(changed, member).index_fill_(member.dim, slots, 0)
        return changed

    def _members(self, chosen: Bools) -> Iterator[tuple[Member, str, Tensor]]:
        """The members in which chosen channels have slots, their roles, and the slots."""
        for group in self.analysis.groups:
            if (gone := chosen[group.channels]).any():
                yield from ((member, role, _slots(member, gone)) for member, role in self.roles[group.number])

    def _new(self, changed: dict[str, Tensor], member: Member) -> Tensor:
        if member.parameter not in changed:
            changed[member.parameter] = self.tensors[member.parameter].detach().clone()
        return changed[member.parameter]

    def _equal(self, changed: dict[str, Tensor]) -> bool:
        return relative_error(self._run(changed), self.expected) <= TOLERANCE

    def _run(self, changed: dict[str, Tensor]) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (self.args, self.kwargs))
            return torch.func.functional_call(self.model, changed, args, kwargs)


def _random(old: Tensor, dim: int, slots: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Numbers `scale` times as large as those of a tensor for some slots of it; none is negative where none was."""
    shape = [*old.shape[:dim], len(slots), *old.shape[dim + 1 :]]
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(old.device)
    drawn *= scale * (old.detach().abs().mean() + 0.1)
    return drawn.abs() if bool((old >= 0).all()) else drawn


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
