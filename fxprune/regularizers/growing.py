"""Growing regularisation: what a plan removes is driven to zero before it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fxprune._follow import SlotsThatStay
from fxprune.arguments import checks_names, fits, shown
from fxprune.channels.groups import Bools
from fxprune.errors import PlanError
from fxprune.planning.plan import Plan
from fxprune.regularizers.base import Regularizer, squared


class GrowingRegularization(Regularizer):
    """Half of the sum of squares of everything that a plan removes, with a strength that grows.

    The strength at step n is min(ceiling, delta * floor(n / every)). So the channels that go carry less and less, and
    what stays takes over (Wang et al. 2021, "Neural Pruning via Growing Regularization", GReg-1,
    https://arxiv.org/abs/2012.09243). Afterwards `transform(model, x, plan=plan)` removes them,
    and the penalty is zero.

    Args:
        model: the model that the plan was made for.
        plan: the channels that will go.
        delta: how much the strength grows at a time.
        every: the number of steps after which it grows.
        ceiling: the largest strength.

    >>> import fxprune
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan = fxprune.analyze(net, torch.randn(1, 4)).plan(ratio=0.5)
    >>> penalty = GrowingRegularization(net, plan, delta=0.1, every=2, ceiling=0.2)
    >>> strengths = []
    >>> for _ in range(7):
    ...     strengths.append(penalty.strength(penalty.number))
    ...     penalty.step()
    >>> strengths
    [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2]
    """

    @checks_names
    def __init__(
        self, model: nn.Module, plan: Plan, *, delta: float = 1e-4, every: int = 10, ceiling: float = 1.0
    ) -> None:
        if not isinstance(plan, Plan):
            at, why = f"GrowingRegularization(plan={shown(plan)})", f"it is of the type {type(plan).__name__}"
            raise PlanError("a plan is needed", at=at, why=why, do="pass what analysis.plan gives")
        numbers = (delta, every, ceiling)
        if not all(fits(n, float) and math.isfinite(n) and n > 0 for n in numbers) or not isinstance(every, int):
            raise PlanError(
                "a growing strength needs positive numbers",
                at=f"GrowingRegularization(delta={shown(delta)}, every={shown(every)}, ceiling={shown(ceiling)})",
                why="it grows by delta after every steps, an integer, up to the ceiling",
                do="leave them out, or pass for example delta=1e-4, every=10, ceiling=1.0",
            )
        super().__init__(model, lambda number: min(ceiling, delta * (number // every)))
        self.plan = plan
        self._removed = plan.removed
        have = dict(model.named_parameters(remove_duplicate=False))
        if not any(name in have for name in plan.removed):
            raise PlanError(
                "the plan removes nothing of this model",
                at=f"GrowingRegularization({type(model).__name__}())",
                why="none of its parameters is in the plan",
                do="make the plan for this model, with fxprune.analyze(model, example_inputs).plan(...)",
            )
        self._shapes = {name: tuple(p.shape) for name, p in have.items() if name in plan.removed}
        if plan.structure is not None:
            self._shapes = {name: tuple(plan.structure.shapes.get(name, shape)) for name, shape in self._shapes.items()}
        if not self._is_there():
            raise PlanError(
                "the plan is for another model",
                at=f"GrowingRegularization({type(model).__name__}())",
                why="its channels are gone",
                do="make a plan for this model",
            )

    def _is_there(self) -> bool:
        """True if the model has what the plan removes, False if that is gone. Raises `PlanError` for other shapes."""
        gone = set[bool]()
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in self._shapes:
                before, dims = self._shapes[name], self._removed[name]
                after = tuple(size - len(dims.get(dim, ())) for dim, size in enumerate(before))
                shape = tuple(parameter.shape)
                if shape not in (before, after):
                    why, do = f"it has shape {shape}, and {before} in the plan", "make a plan for this model"
                    raise PlanError("the plan is for another model", at=f'"{name}"', why=why, do=do)
                gone.add(shape != before)
        return True not in gone

    def on(self, model: nn.Module, kept: SlotsThatStay) -> Regularizer:
        """Returns the same penalty on a small model, with those of its channels that are still there."""
        made = super().on(model, kept)
        assert isinstance(made, GrowingRegularization)
        if self._is_there():
            left = {name: _left(dims, kept.get(name, {})) for name, dims in self._removed.items()}
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
            made._removed = {name: dims for name, dims in left.items() if dims and name in shapes}
            made._shapes = {name: shapes[name] for name in made._removed}
        return made

    @property
    def is_done(self) -> bool:
        """True if all that the plan removes is gone."""
        return not self._removed or not self._is_there()

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that lose something; none if that is gone."""
        return [] if not self._is_there() else [p for name, p in self.model.named_parameters() if name in self._removed]

    def penalty(self) -> torch.Tensor:
        """Returns half of the sum of squares of what is removed; an element in two removed slots counts once.

        Zero if the channels are gone. Raises `PlanError` for a model that lost others.
        """
        if not self._is_there():
            return torch.zeros(())
        terms = []
        for name, parameter in self.model.named_parameters():
            dims = self._removed.get(name)
            if dims:
                gone = torch.zeros_like(parameter, dtype=torch.bool)
                for dim, indices in dims.items():
                    gone.index_fill_(dim, torch.tensor(indices, device=parameter.device), True)
                terms.append((squared(parameter) * gone).sum() / 2)
        return torch.stack(terms).sum() if terms else torch.zeros(())


def _left(removed: Mapping[int, Sequence[int]], kept: Mapping[int, Bools]) -> dict[int, list[int]]:
    """The removed indices that are among the kept slots, in the numbering of these."""
    made = {}
    for dim, indices in removed.items():
        flags = kept.get(dim)
        left = [*indices] if flags is None else [int(flags[:index].sum()) for index in indices if flags[index]]
        if left:
            made[dim] = left
    return made
