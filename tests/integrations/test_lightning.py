"""The callback for Lightning, with its real Trainer."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from tests.follow.nets import batch, net

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl

    from fxprune.integrations.lightning import LightningPruningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of loaders without workers and the like


class Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def training_step(self, found: list[torch.Tensor], number: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(found[0]), found[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), 0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}


def loader() -> DataLoader[Any]:
    images = torch.cat([batch(seed) for seed in range(4)])
    return DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=4, shuffle=False)


def fitted(
    folder: Path,
    epochs: int,
    checkpoint: Path | None = None,
    *,
    twice: bool = False,
    accumulate: int = 1,
    others: Any = (),
    task: Any = None,
    **when: Any,
) -> tuple[Task, LightningPruningCallback, Any]:
    task = task or Task()
    callback = LightningPruningCallback("net", batch(0), keep={"macs": 0.3}, steps=3, **when)
    callback.resume_from = checkpoint if twice else None
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[callback, *others, saving],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(task, loader(), ckpt_path=checkpoint)
    return task, callback, trainer


def test_a_module_gets_smaller_and_training_goes_on(tmp_path: Path) -> None:
    task, callback, trainer = fitted(tmp_path, 4)
    assert callback.pruner.done
    assert task.net.stem.out_channels < 8
    assert fxprune.cost(task.net, batch(0)).macs <= 0.3 * fxprune.cost(net(), batch(0)).macs
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in task.net.parameters()}
    assert float(trainer.callback_metrics["pruning_progress"]) == 1.0


@pytest.mark.parametrize("twice", [False, True], ids=["by the trainer", "by the callback too"])
def test_a_training_goes_on_from_its_own_checkpoint_after_a_prune(tmp_path: Path, twice: bool) -> None:
    whole, _, _ = fitted(tmp_path / "whole", 4)
    fitted(tmp_path / "first", 2)
    again, callback, _ = fitted(tmp_path / "first", 4, tmp_path / "first" / "epoch=1.ckpt", twice=twice)
    assert callback.pruner.number == 4
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_steps_of_the_optimizer_count_as_well(tmp_path: Path) -> None:
    _, callback, _ = fitted(tmp_path, 1, every_n_steps=2)
    assert callback.pruner.number == 2


def test_a_step_of_the_optimizer_over_several_batches_counts_once(tmp_path: Path) -> None:
    whole, callback, _ = fitted(tmp_path / "whole", 4, every_n_steps=2, accumulate=2)
    assert callback.pruner.number == 4
    fitted(tmp_path / "first", 2, every_n_steps=2, accumulate=2)
    again, callback, _ = fitted(
        tmp_path / "first", 4, tmp_path / "first" / "epoch=1.ckpt", every_n_steps=2, accumulate=2
    )
    assert callback.pruner.number == 4
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def averaging(kind: str) -> Any:
    if kind == "EMAWeightAveraging":
        return pl.callbacks.EMAWeightAveraging(decay=0.5)
    return pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)


@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_the_callbacks_of_lightning_follow(kind: str, tmp_path: Path) -> None:
    whole, callback, _ = fitted(tmp_path / "whole", 4, others=[averaging(kind)])
    assert callback.pruner.done
    fitted(tmp_path / "first", 2, others=[averaging(kind)])
    last = tmp_path / "first" / "epoch=1.ckpt"
    again, _, _ = fitted(tmp_path / "first", 4, last, others=[averaging(kind)])
    expected = whole.state_dict()
    if kind == "EMAWeightAveraging":  # the other changes the schedule, and Lightning does not save where it was
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    assert {name: t.shape for name, t in again.state_dict().items()} == {n: t.shape for n, t in expected.items()}


class Pair(Task):
    """Two networks with an optimizer for each, and an average of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(5, 5).double()
        self.average = torch.optim.swa_utils.AveragedModel(self.net)

    def training_step(self, found: list[torch.Tensor], number: int) -> None:
        both = self.optimizers()
        for each in both:
            each.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.judge(self.net(found[0])), found[1]))
        for each in both:
            each.step()
        self.average.update_parameters(self.net)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net.parameters(), 0.01), torch.optim.SGD(self.judge.parameters(), 0.1)]


def test_of_several_optimizers_those_of_the_module_follow(tmp_path: Path) -> None:
    task, callback, trainer = fitted(tmp_path, 4, task=Pair())
    assert callback.pruner.done
    for optimizer, part in zip(trainer.optimizers, (task.net, task.judge), strict=True):
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in part.parameters()]
    assert task.average.module.stem.weight.shape == task.net.stem.weight.shape


def test_a_second_fit_goes_on_with_the_same_pruner(tmp_path: Path) -> None:
    task, callback, trainer = fitted(tmp_path, 4)
    pruner, width = callback.pruner, task.net.stem.out_channels
    trainer.fit_loop.max_epochs = 6
    trainer.fit(task, loader())
    assert callback.pruner is pruner
    assert (pruner.number, task.net.stem.out_channels) == (6, width)
    trainer.fit_loop.max_epochs = 7
    trainer.fit(task, loader(), ckpt_path=tmp_path / "epoch=5.ckpt")
    with pytest.raises(fxprune.PlanError, match=r"no longer what it was at the checkpoint\n  at .*\n  why .*\n  do "):
        trainer.fit(task, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")


def test_an_optimizer_is_not_an_option() -> None:
    with pytest.raises(fxprune.PlanError, match=r"takes no optimizer\n  at .*\n  why .*\n  do   leave it out"):
        LightningPruningCallback("net", batch(0), keep={"macs": 0.3}, optimizer=None)


@pytest.mark.parametrize("module", ["", "model", "net.no"])
def test_a_module_that_is_not_there_is_named(module: str, tmp_path: Path) -> None:
    trainer = pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    trainer.callbacks.append(LightningPruningCallback(module, batch(0), keep={"macs": 0.3}))
    with pytest.raises(fxprune.PlanError, match=r"no such module to prune\n.*\n  why  the modules of Task are: net"):
        trainer.fit(Task(), loader())


@pytest.mark.parametrize(
    "when", [{"every_n_epochs": 0}, {"every_n_steps": 1.5}, {"every_n_epochs": 1, "every_n_steps": 1}]
)
def test_wrong_moments_are_refused(when: dict[str, Any]) -> None:
    with pytest.raises(fxprune.PlanError):
        LightningPruningCallback("net", batch(0), keep={"macs": 0.3}, **when)
