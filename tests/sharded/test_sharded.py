"""Models under `fully_shard`: several processes prune them as one process prunes the whole model."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.regularizers import GroupLasso
from fxprune.sharded.talk import ProcessLostError
from tests.follow.nets import batch, net
from tests.follow.test_optimizers import Scaled
from tests.processes import run_together
from tests.sharded.nets import BUDGET, distance, sharded, train, train_both


def pruned_as_one(rank: int) -> str:
    """Train and prune twice, in one process and in several, and compare."""
    alone, shared = net(), sharded()
    modules = dict(shared.named_modules())
    hooked: list[int] = []
    shared.inner.register_forward_hook(lambda *args: hooked.append(1))
    shared.stem.set_modules_to_forward_prefetch([shared.inner])
    models = alone, shared
    optimizers = [torch.optim.AdamW(model.parameters(), 0.01, amsgrad=True) for model in models]
    both = list(zip(models, optimizers, strict=True))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9) for optimizer in optimizers]
    pruners = [fxprune.GradualPruner(model, batch(0), optimizer=made, **BUDGET) for model, made in both]
    for seed in range(4):
        train_both(rank, *both, seed)
        for schedule in schedules:
            schedule.step()
        if seed % 2:
            one, several = (pruner.step() for pruner in pruners)
            assert one.plan.removed == several.plan.removed
            assert (one.after.macs, one.after.params) == (several.after.macs, several.after.params)
    assert distance(alone, shared) < 1e-12
    assert dict(shared.named_modules()) == modules
    hooked.clear()
    train_both(rank, *both, 6)
    assert len(hooked) == 1
    assert all(isinstance(shared.get_submodule(name), FSDPModule) for name in ("", "stem", "inner"))
    size = distributed.get_world_size()
    for parameter in shared.parameters():
        assert isinstance(parameter, DTensor)
        each = -(-len(parameter) // size)
        assert len(parameter.to_local()) == max(0, min(each, len(parameter) - rank * each))
        moment = optimizers[1].state[parameter]["exp_avg"]
        assert isinstance(moment, DTensor)
        assert moment.placements == parameter.placements
    made = fxprune.record(shared)
    assert made.error is not None
    assert made.error < 1e-9
    assert made.compared
    return str(made.reasons[-1])


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_and_prune_as_one(count: int) -> None:
    notes = run_together(pruned_as_one, count)
    for rank, note in enumerate(notes):
        assert f"sharded over {count} processes, and proven there" in note
        most, largest = (int(number.replace(",", "")) for number in (note.split()[9], note.split()[-1].rstrip(")")))
        # one at a time: a thread of gloo may free a small tensor late, but two of the three large weights are more
        assert largest <= most < 1.25 * largest, (rank, note)


def square(model: nn.Module, data: torch.Tensor) -> torch.Tensor:
    return model(data).square().mean()


OPTIONS: dict[str, dict[str, Any]] = {
    "soft": {"soft": 2},
    "apoz": {"importance": "apoz", "data": 0},
    "taylor": {"importance": "taylor", "data": 0, "loss": square},
    "repair": {"repair": 0},
}
DATA = [batch(seed) for seed in range(20, 28)]


KINDS = {"soft": ["sharded"], "apoz": ["sharded"], "taylor": ["sharded", "replicated"], "repair": ["replicated"]}


def measured_as_one(rank: int) -> None:
    """Prune with criteria and repairs that read data: each process reads a part of it."""
    for name, options in OPTIONS.items():
        models = [net(), *(sharded() if kind == "sharded" else DistributedDataParallel(net()) for kind in KINDS[name])]
        removed = []
        for model in models:
            own = DATA if model is models[0] else DATA[4 * rank : 4 * rank + 4]
            filled = {key: own if value == 0 else value for key, value in options.items()}
            steps = {**BUDGET, "steps": 2 if name == "soft" else 1}
            pruner = fxprune.GradualPruner(model, batch(0), **steps, **filled)
            made = [pruner.step() for _ in range(steps["steps"])]
            removed.append([(each.plan or each.silenced).removed for each in made])
        assert all(each == removed[0] for each in removed), name
        assert all(distance(models[0], model) < 1e-9 for model in models[1:]), name


def test_processes_with_a_part_of_the_data_measure_and_repair_as_one_with_all() -> None:
    run_together(measured_as_one, 2)


def resumed(rank: int, folder: str) -> None:
    """Stop after a step of the pruner, load everything into a new model, and go on to the same bits."""
    first = sharded()
    optimizer = torch.optim.Adam(first.parameters(), 0.01)
    pruner = fxprune.GradualPruner(first, batch(0), optimizer=optimizer, **BUDGET)
    train(first, optimizer, batch(0))
    pruner.step()
    train(first, optimizer, batch(1))
    weights, state = get_state_dict(first, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    known = pruner.state_dict()

    second = sharded()
    other = torch.optim.Adam(second.parameters(), 0.01)
    again = fxprune.GradualPruner(second, batch(0), optimizer=other, **BUDGET)
    again.load_state_dict(known)
    weights, state = get_state_dict(second, other)
    checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(second, other, model_state_dict=weights, optim_state_dict=state)
    for model, opt, made in ((first, optimizer, pruner), (second, other, again)):
        train(model, opt, batch(2))
        made.step()
        train(model, opt, batch(3))
    assert again.done
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.to_local(), b.to_local())
        assert torch.equal(optimizer.state[a]["exp_avg_sq"].to_local(), other.state[b]["exp_avg_sq"].to_local())


def test_a_distributed_checkpoint_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run_together(resumed, 2, str(tmp_path / "checkpoint"))


def averaged(rank: int) -> None:
    """An average that is sharded too gets smaller with the model, and goes on as that of one process."""
    alone, shared = net(), sharded()
    averages = [AveragedModel(net(), multi_avg_fn=get_ema_multi_avg_fn(0.5)) for _ in range(2)]
    sharded(averages[1].module)
    models = alone, shared
    optimizers = [torch.optim.Adam(model.parameters(), 0.01) for model in models]
    both = list(zip(models, optimizers, strict=True))
    pruners = [
        fxprune.GradualPruner(model, batch(0), optimizer=optimizer, ema=average, **BUDGET)
        for (model, optimizer), average in zip(both, averages, strict=True)
    ]
    modules = dict(averages[1].named_modules())
    for seed in range(4):
        train_both(rank, *both, seed)
        for average, model in zip(averages, models, strict=True):
            average.update_parameters(model)
        if seed % 2:
            for pruner in pruners:
                pruner.step()
    assert distance(*models) < 1e-12
    assert distance(*(average.module for average in averages)) < 1e-12
    assert dict(averages[1].named_modules()) == modules
    assert all(isinstance(parameter, DTensor) for parameter in averages[1].module.parameters())
    assert float((averages[0](batch(5)) - averages[1](batch(5))).abs().max()) < 1e-12
    with pytest.raises(fxprune.InputError, match="holds no copy of the model"):
        fxprune.transform_(shared, batch(0), ratio=0.5, ema=AveragedModel(net()))


def test_an_average_that_is_sharded_follows() -> None:
    run_together(averaged, 2)


def one_raises(group: Any) -> Any:
    if distributed.get_rank() == 1:
        raise ValueError("only here")
    return torch.arange(group.size)


def raising(rank: int) -> None:
    """A difference between the processes makes all of them raise, and changes nothing."""
    model = sharded()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, optimizer, batch(0))
    before = {name: whole.to_local().clone() for name, whole in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    other = torch.optim.LBFGS(model.parameters())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ratio": 0.5, "importance": one_raises}, "only here"),
        ({"ratio": 0.5, "importance": "random", "seed": rank}, "do not agree on a plan"),
        ({"ratio": 0.5 if rank else 0.25}, "do not agree on a plan"),
        ({"ratio": 0.5, "verify": bool(rank)}, "do not do the same"),
        (
            {"ratio": 0.5, "optimizer": other if rank else optimizer},
            "LBFGS cannot follow",
        ),
        ({"ratio": 2.0}, "ratio"),
    ]
    for options, text in cases:
        with pytest.raises(FxpruneError if options.get("importance") is not one_raises else Exception, match=text):
            fxprune.transform_(model, batch(0), **options)
        assert [type(module) for module in model.modules()] == kinds
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.to_local(), before[name])
    wrapped = DistributedDataParallel(net())
    with pytest.raises(FxpruneError, match="only here"):
        fxprune.GradualPruner(wrapped, batch(0), importance=one_raises, **BUDGET)
    measured = {"importance": "taylor", "data": DATA, "loss": square} if rank else {}
    with pytest.raises(FxpruneError, match=r"exchanging plans.*exchanging sums|exchanging sums.*exchanging plans"):
        fxprune.GradualPruner(wrapped, batch(0), **measured, **BUDGET).step()
    train(model, optimizer, batch(1))
    fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer)
    train(model, optimizer, batch(2))


def test_what_one_process_does_otherwise_makes_all_raise() -> None:
    run_together(raising, 2)


def losing(rank: int, kind: str) -> str:
    """One process dies while the others work with it."""

    def dies(group: Any) -> Any:
        if rank == 1 and made:
            os._exit(0)
        return torch.arange(group.size)

    made: list[fxprune.GradualPruner] = []
    model = sharded() if kind == "sharded" else DistributedDataParallel(net())
    made.append(fxprune.GradualPruner(model, batch(0), importance=dies, **BUDGET))
    with pytest.raises(ProcessLostError, match="another process does not answer"):
        made[0].step()
    os._exit(0)  # nothing to end together


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_process_that_dies_makes_the_others_raise(kind: str) -> None:
    run_together(losing, 2, kind, lost=(0, 1))


def refused(rank: int) -> None:
    """An option that is not possible for a sharded model is refused by name."""
    model = sharded()
    for call in (fxprune.transform, fxprune.analyze):
        with pytest.raises(FxpruneError, match=r"DTensor(?s:.*)transform_ or GradualPruner"):
            call(model, batch(0), **({"ratio": 0.5} if call is fxprune.transform else {}))
    for options, what in (
        ({"repair": DATA}, "a repair"),
        ({"bias": "fold"}, "fold"),
        ({"masks": "zeros"}, "zeros"),
        ({"depth": True}, "depth=True"),
    ):
        with pytest.raises(FxpruneError, match=what):
            fxprune.transform_(model, batch(0), **{"ratio": 0.5, **options})
    for placements in ([Replicate()], [Shard(1)]):
        other = net()
        mesh = distributed.init_device_mesh("cpu", (2,))
        other.head.weight = nn.Parameter(distribute_tensor(other.head.weight.detach(), mesh, placements))
        with pytest.raises(FxpruneError, match="DTensor"):
            fxprune.transform_(other, batch(0), ratio=0.5)


def test_what_is_not_possible_is_refused_by_name() -> None:
    run_together(refused, 2)


def other_numbers(rank: int) -> None:
    """Weights that carry a factor or the ratio of two norms reach the shards; a hook that does not is warned of."""
    torch.manual_seed(0)
    scaled, normed = Scaled().double().eval(), net()
    nn.utils.parametrizations.weight_norm(normed.inner)
    for alone, inputs in ((scaled, torch.randn(2, 3, 16, dtype=torch.float64)), (normed, batch(0))):
        shared = copy.deepcopy(alone)
        fully_shard(shared)
        for model in (alone, shared):
            fxprune.transform_(model, inputs, ratio=0.5)
        assert distance(alone, shared) == 0.0
        assert torch.allclose(alone(inputs), shared(inputs), rtol=0, atol=1e-12)
    assert fxprune.record(scaled).plan.factors
    hooked = sharded()
    hooked.stem.weight.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match='not on the new parameters of "stem.weight"'):
        fxprune.transform_(hooked, batch(0), ratio=0.5)
    with pytest.raises(FxpruneError, match="a penalty on channels"):
        GroupLasso(hooked, batch(0), 0.1)


def test_numbers_that_are_not_cut_but_computed_reach_the_shards() -> None:
    run_together(other_numbers, 2)


def settings(rank: int) -> None:
    """The settings of `fully_shard` stay: placements, policies, frozen and ignored parameters, tied weights."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    alone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    alone.load_state_dict(model.state_dict())
    for made in (alone, model):
        made[2].weight.requires_grad_(False)
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(model[0], reshard_after_forward=False)
    fully_shard([model[2], model[3]], mp_policy=policy, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    fully_shard(model, ignored_params={model[4].bias})
    model[0].set_gradient_divide_factor(3.0)
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distributed.broadcast(x, 0)
    for made in (alone, model):
        fxprune.transform_(made, x, ratio=0.5)
    assert not model[2].weight.requires_grad
    assert model[2].weight.placements == (Shard(1),)
    assert not isinstance(model[4].bias, DTensor)
    assert type(model[2]).__name__ == "FSDPLinear"
    groups = [model[at]._get_fsdp_state()._fsdp_param_groups[0] for at in (0, 2)]
    assert groups[0].gradient_divide_factor == 3.0
    assert groups[0].post_forward_mesh_info is None
    assert groups[1].mp_policy == policy
    assert math.isclose(float(model(x).double().sum()), float(alone(x).sum()), rel_tol=1e-4)


def test_the_settings_of_the_wrappers_stay() -> None:
    run_together(settings, 2)
