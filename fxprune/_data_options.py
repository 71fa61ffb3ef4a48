"""The arguments of `transform` about data and training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fxprune._follow import listed
from fxprune._search import (
    SearchData,
)
from fxprune.capture.inputs import Inputs
from fxprune.criteria import Importance
from fxprune.criteria.from_data import on_data
from fxprune.criteria.losses import Loss
from fxprune.errors import (
    PlanError,
)
from fxprune.running.inputs import all_batches, inputs_like, inputs_of


@dataclass(frozen=True, eq=False)
class DataOptions:
    """The arguments of `transform` about data and training, under their names there."""

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    scores: Any = None
    repair: Iterable[Any] | bool | None = None
    repair_mode: str = "weights"
    repair_inputs: Callable[[Any], Any] | None = None
    optimizer: Any = None
    ema: Any = None
    search: Mapping[str, Any] | None = None
    process_group: Any = None

    @property
    def followers(self) -> list[Any]:
        """The optimizers and averaged models that follow."""
        return [*listed(self.optimizer), *listed(self.ema)]

    def several_times(self) -> DataOptions:
        """The options with batches that can be read several times."""
        data = list(self.data) if isinstance(self.data, Iterator) else self.data
        return replace(self, data=data, repair=list(self.repair) if isinstance(self.repair, Iterator) else self.repair)

    def search_data(self, model: nn.Module, example: Inputs) -> SearchData:
        """The data of a search. Those of `data` have labels for the loss."""
        pick = self.repair_inputs or inputs_like(example, model)
        labelled = self.repair is True or self.repair is None or self.repair is False
        return SearchData(self.data, pick, self.loss) if labelled else SearchData(self.repair, pick)

    def read(
        self, model: nn.Module, example: Inputs, importance: Importance, *, deep: bool = False
    ) -> tuple[Importance, list[Inputs] | None]:
        """The importance, measured if it needs data, and the inputs to repair on, None for no repair.

        deep: True if branches are chosen on the data.
        """
        data, pick = self.data, self.repair_inputs
        if self.repair is None or self.repair is False:
            picked = pick is not None and data is None  # an importance may be measured on what it picks
            for name, given in (("repair_mode", self.repair_mode != "weights"), ("repair_inputs", picked)):
                if given:
                    why = "nothing is repaired"
                    raise PlanError(
                        f"{name} is without effect here", why=why, do="pass repair=batches, or leave it out"
                    )
        if self.repair is True:
            if data is None:
                raise PlanError(
                    "there is no data to repair on", why="repair=True takes those of `data`", do="pass data=batches"
                )
            data = all_batches(data)  # it is read twice
            pick = pick or inputs_like(example, model)
        repair = data if self.repair is True else self.repair
        batches = None if repair is None or repair is False else inputs_of(model, repair, pick)
        made = on_data(
            importance,
            model,
            example,
            data=data,
            loss=self.loss,
            scores=self.scores,
            pick=pick if batches is None or self.repair is True else None,
            used_elsewhere=self.repair is True or deep,
            process_group=self.process_group,
        )
        return made, batches
