"""A model that several processes train: they agree on a plan, and its wrapper is made again."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn.parallel import DistributedDataParallel

from fxprune.errors import FxpruneError, PlanError, text_of
from fxprune.planning.plan import Plan
from fxprune.running.processes import Processes

SETTINGS = (
    *("device_ids", "output_device", "dim", "broadcast_buffers", "process_group"),
    *("find_unused_parameters", "gradient_as_bucket_view", "static_graph"),
)
"""The arguments of a wrapper that it keeps as attributes."""


def agreed(plan: Callable[[], Plan], processes: Processes) -> Plan:
    """The plan that all processes make. Raises on all of them if one raises, or if their plans differ."""
    made, trouble = None, ""
    try:
        made = plan()
    except FxpruneError as error:
        trouble = text_of(error)
    found = processes.all((trouble, None if made is None else dict(made.removed)))
    raised = next(((rank, text) for rank, (text, _) in enumerate(found) if text), None)
    if raised is not None or made is None:
        rank, text = raised or (processes.rank, "")
        raise PlanError(f"process {rank} could not make a plan", why=text, do="no process has changed its model")
    plans = [dict(theirs or {}) for _, theirs in found]
    other = next((rank for rank, theirs in enumerate(plans) if theirs != plans[0]), None)
    if other is not None:
        names = sorted({*plans[0], *plans[other]})
        first = next(name for name in names if plans[0].get(name) != plans[other].get(name))
        raise PlanError(
            "the processes do not agree on a plan",
            at=f'"{first}"',
            why=f"process 0 and process {other} chose other channels, so their weights, data or seeds differ",
            do="choose by weights alone, or give all processes the same data and the same seed",
        )
    return made


def wrap_again(wrapper: DistributedDataParallel) -> None:
    """Makes a wrapper look at the parameters of its module as they are now. It stays the same object.

    Communication hooks are gone afterwards and have to be registered again.
    """
    mode, hooks = wrapper.training, dict(wrapper._forward_hooks)
    settings = {name: getattr(wrapper, name) for name in SETTINGS}
    module = wrapper.module
    DistributedDataParallel.__init__(wrapper, module, **settings)
    wrapper.training = mode
    wrapper._forward_hooks.update(hooks)
