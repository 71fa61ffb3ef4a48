"""The criteria that need data, asked for by name: `importance="taylor"` with `data=` and `loss=`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.capture.inputs import Inputs
from fxprune.criteria.combined import CombinedImportance
from fxprune.criteria.losses import Loss, check_loss
from fxprune.criteria.saved_scores import ChannelScores, given_scores
from fxprune.criteria.scored_model import check_model
from fxprune.criteria.scores import scores_of, unknown_importance
from fxprune.criteria.table import CRITERIA, MEASURED, GroupsImportance, Importance, comparable, in_loss
from fxprune.errors import PlanError
from fxprune.running.inputs import all_batches, inputs_like, inputs_of


def takes_loss(name: str) -> bool | None:
    """True if a criterion of `MEASURED` needs a loss, False if it can do with one, None if it takes none."""
    parameter = inspect.signature(MEASURED[name]).parameters.get("loss")
    return None if parameter is None else parameter.default is inspect.Parameter.empty


def on_data(
    importance: Importance,
    model: nn.Module,
    example: Inputs,
    *,
    data: Any = None,
    loss: Loss | None = None,
    scores: Any = None,
    pick: Callable[[Any], Any] | None = None,
    used_elsewhere: bool = False,
    process_group: Any = None,
) -> Importance:
    """The importance, with a name in `MEASURED` replaced by what that criterion measures on the data.

    Args:
        example: the example inputs. A batch for a criterion without a loss has their form, or is a tuple of these and
            labels; one for a criterion with a loss is whatever the loss takes.
        scores: instead of an importance, scores that were measured before, or the name of their file.
        pick: picks the inputs out of a batch for a criterion without a loss, by default by the form of the example.
        used_elsewhere: True if something else reads the data too; if not, data that no criterion reads are refused.
        process_group: the processes that measure together, each on its own batches.

    Raises `PlanError` for data or a loss that is missing, is without effect, or is none, and for scores of another
    model; warns with `OtherWeightsWarning` for those of other weights.
    """
    if scores is not None:
        if importance != "l2":
            raise PlanError(
                "an importance and scores were given", why="both rank the channels", do="leave one of them out"
            )
        importance = given_scores(scores)
    if isinstance(importance, ChannelScores):
        check_model(importance.parameters, model)
    if not needs_data(importance):
        if not used_elsewhere and (data is not None or loss is not None):
            if isinstance(importance, str) and importance not in CRITERIA:
                raise unknown_importance(importance)
            given = "data" if data is not None else "loss"
            raise PlanError(
                f"{given} is without effect here",
                why="the importance reads no data, and nothing is repaired",
                do=f"choose one of {', '.join(MEASURED)}, or leave it out",
            )
        return importance
    if isinstance(importance, CombinedImportance):
        kept = None if data is None else all_batches(data)  # each of them reads it
        return importance.each(
            lambda part: on_data(
                part, model, example, data=kept, loss=loss, pick=pick, used_elsewhere=True, process_group=process_group
            )
        )
    return _measured(str(importance), model, data, loss, pick or inputs_like(example, model), process_group)


def needs_data(importance: Any) -> bool:
    """True if an importance is a name in `MEASURED`, or combines such names."""
    if isinstance(importance, CombinedImportance):
        return any(needs_data(part) for part, _ in importance.parts)
    return isinstance(importance, str) and importance in MEASURED


def _measured(
    name: str, model: nn.Module, data: Any, loss: Loss | None, pick: Callable[[Any], Any], process_group: Any
) -> Importance:
    """The importance that a criterion of `MEASURED` measures on the data."""
    takes = takes_loss(name)
    if data is None:
        raise PlanError(
            f'importance "{name}" needs data',
            why="it is measured on batches, and none were given",
            do="pass `data=batches`, such as a data loader" + (", and `loss=`" if takes else ""),
        )
    if takes and loss is None:
        raise PlanError(
            f'importance "{name}" needs a loss',
            why="it is measured by gradients, and no loss was given",
            do="pass `loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])`, or another scalar",
        )
    if takes is not None and loss is not None:
        check_loss(loss)
        return MeasuredImportance(partial(MEASURED[name], model, data, loss=loss, **_shared(name, process_group)))
    inputs = inputs_of(model, data, pick)
    batches = [_as_batch(model, *one) for one in inputs]
    return MeasuredImportance(partial(MEASURED[name], model, batches, **_shared(name, process_group)))


def _shared(name: str, process_group: Any) -> dict[str, Any]:
    """The argument that lets processes measure together. Raises `PlanError` for a criterion that has none."""
    if process_group is None:
        return {}
    if "process_group" not in inspect.signature(MEASURED[name]).parameters:
        alike = [other for other in MEASURED if "process_group" in inspect.signature(MEASURED[other]).parameters]
        raise PlanError(
            f'importance "{name}" cannot be measured by several processes',
            why="what it needs of each sample cannot be added over them",
            do=f"choose one of {', '.join(alike)}",
        )
    return {"process_group": process_group}


@dataclass(frozen=True, eq=False)
class MeasuredImportance(GroupsImportance):
    """An importance that is measured when the first score is asked for, after a request was checked.

    make: makes the importance.
    """

    make: Callable[[], Callable[[Group], Any]]

    @cached_property
    def made(self) -> Callable[[Group], Any]:
        """The importance, measured once."""
        return self.make()

    @property
    def comparable(self) -> bool:
        """True if the scores compare between groups."""
        return comparable(self.made)

    @property
    def in_loss(self) -> bool:
        """True if the scores are changes of the loss."""
        return in_loss(self.made)

    def __call__(self, group: Group) -> Any:
        """One score per channel of the group."""
        return self.made(group)

    def of_groups(self, findings: Findings, groups: Sequence[Group], seed: int | None) -> npt.NDArray[np.float64]:
        """One score per channel of the analysis."""
        return scores_of(findings, self.made, groups, seed)


def _as_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call as one batch: a tuple, or keywords where there are several of them or keywords."""
    if len(args) <= 1 and not kwargs:
        return args
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        return args or kwargs
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
