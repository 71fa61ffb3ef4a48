"""A captured model that is ready for the walk: fake tensors, with a new vector for each of their dimensions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import nn

from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.observed import Walked
from fxprune.analysis.observer import Observer
from fxprune.analysis.results import Results
from fxprune.analysis.tensor_table import TensorTable
from fxprune.analysis.uses import Uses
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.layouts import is_sparse
from fxprune.capture.scopes import Scopes
from fxprune.capture.tensors import Tensors, constants_of
from fxprune.channels.groups import Axis, Solution
from fxprune.channels.solve import solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.ops import Operand


class Opened:
    """A captured model with fake tensors, and the observer that knows the vectors of these tensors.

    module: the copy of the model with fake tensors, or with real ones if `captured.real`, that runs now.
    tensors, aliases: as in `TensorTable`.
    axes: each fake tensor with those of its dimensions that may shrink.
    """

    def __init__(self, subject: Subject, *, strict: bool) -> None:
        self.subject = subject
        self.terms = Terms()
        self.faker = Real() if subject.captured.real else Faker()
        self.module = self.faker.module(subject.captured.module)
        self.scopes = Scopes(self.module)
        self.observer = Observer(self.terms, self.scopes, strict=strict)
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.axes: list[tuple[torch.Tensor, list[Axis]]] = []
        self._versions: dict[str, int] = {}
        self._constants = (
            subject.captured.tensors.keys() - subject.tensors.keys()
        )  # they shrink too, but plans do not name them
        for found in subject.captured.tensors.unique:
            self._open(found.name, found.tensor)
            if found.others:
                self.aliases[found.name] = found.others

    def reopen(self) -> None:
        """Take a new copy of the model around the same tensors: what forward has stored in the old one is gone."""
        self.module = self.faker.module(self.subject.captured.module)
        self.scopes.follow(self.module, "")

    def written(self) -> set[str]:
        """The names of the tensors that forward has written: they have other numbers, were replaced, or are new."""
        held = {**Tensors.of(self.module), **dict(constants_of(self.module))}
        fakes = {name: self.faker.tensor(tensor) for name, tensor in self.tensors.items()}
        written = {n for n, fake in fakes.items() if _version_of(fake) != self._versions[n] or held.get(n) is not fake}
        return written | (held.keys() - fakes.keys())

    def _open(self, name: str, tensor: torch.Tensor) -> None:
        self.tensors[name] = tensor
        fake = self.faker.tensor(tensor)
        vectors = tuple(map(self.terms.fixed if is_sparse(tensor) else self.terms.fresh, tensor.shape))
        readable = not tensor.is_floating_point() and tensor.device.type != "meta" and not is_sparse(tensor)
        registered = name not in self._constants  # the masked reference zeroes parameters and buffers only
        self._versions[name] = _version_of(fake)
        self.observer.unread.open(fake, tensor)
        self.observer.recorder.name(fake, name)
        self.observer.bind(
            fake, Operand(vectors, tuple(registered or v.fixed for v in vectors), tensor if readable else None)
        )
        axes = [Axis(name, dim, v, tuple(tensor.shape)) for dim, v in enumerate(vectors) if not v.fixed]
        self.axes.append((fake, axes))

    def vectors(self) -> dict[tuple[str, int], Vector]:
        """(First name of a tensor, dimension) -> the vector, for all dimensions that may shrink."""
        return {(axis.parameter, axis.dim): axis.vector for _, axes in self.axes for axis in axes}

    def unread_vectors(self) -> list[Vector]:
        """The vectors of tensors that no operation has read. Call it after the walk."""
        return [axis.vector for fake, axes in self.axes if id(fake) not in self.observer.used for axis in axes]

    def unused_parameters(self) -> list[str]:
        """The names of the parameters that no operation has read. Call it after the walk."""
        trained = ((name, tensor) for name, tensor in self.tensors.items() if isinstance(tensor, nn.Parameter))
        return [name for name, tensor in trained if id(self.faker.tensor(tensor)) not in self.observer.used]

    def _is_unread_constant(self, name: str) -> bool:
        """True for a tensor in an attribute that no operation has read, such as a weight that a hook computes."""
        return name in self._constants and id(self.faker.tensor(self.tensors[name])) not in self.observer.used

    def findings(
        self,
        main: Walked,
        uses: Uses,
        notes: Iterable[str],
        results: Results,
        others: Iterable[Walked] = (),
        more: Iterable[Walked] = (),
        state: Collection[str] = (),
    ) -> Findings:
        """The findings, after the walk. Tensors that no operation has read take no part in the groups.

        The arguments are those of `Observed` and `Findings`. state: the names of tensors that forward writes. Slots of
        these alone are no channels.
        """
        axes = [axis for fake, opened in self.axes if id(fake) in self.observer.used for axis in opened]
        tensors = {name: tensor for name, tensor in self.tensors.items() if not self._is_unread_constant(name)}
        solution = solve(self.terms, [axis for axis in axes if axis.parameter not in self._constants])
        if state and self._lock_state(solution, state):
            solution = solve(self.terms, solution.axes)
        return Findings(
            subject=self.subject,
            observed=self.observer.observed(main, others, more),
            table=TensorTable(tensors, self.aliases, tuple(axes)),
            solution=solution,
            uses=uses,
            notes=tuple(dict.fromkeys(notes)),
            results=results,
            state=frozenset(state),
        )

    def _lock_state(self, solution: Solution, state: Collection[str]) -> bool:
        """Lock the groups that have slots in tensors of the state alone, such as the places of a cache."""
        groups = [solution.members(number) for number in range(solution.groups)]
        alone = [group for group in groups if all(axis.parameter in state for axis, _, _ in group)]
        event = self.observer.event("state", "only a tensor that forward writes has these slots")
        for axis, _, slots in (member for group in alone for member in group):
            self.terms.lock(axis.vector.take(np.unique(slots)), event)
        return bool(alone)


def _version_of(tensor: torch.Tensor) -> int:
    """The number of writes into a tensor; 0 for one of inference mode, which torch does not count."""
    return 0 if tensor.is_inference() else tensor._version
