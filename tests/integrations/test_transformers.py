"""The callback for the Trainer of transformers, with its real Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Adafactor, BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import fxprune
from fxprune.integrations.transformers import FILE, TrainerPruningCallback
from tests.follow.nets import batch, kept, net, step

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer warns of pinned memory and the like


def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def samples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(50, (6,), generator=generator), "labels": torch.tensor(number % 3)}
        for number in range(12)
    ]


def trained(folder: Path, *, resume: Path | None = None) -> tuple[Trainer, TrainerPruningCallback]:
    example = {"input_ids": torch.stack([sample["input_ids"] for sample in samples()[:2]])}
    callback = TrainerPruningCallback(
        example, keep={"params": 0.7}, steps=2, scope="local", resume_from=None if resume is None else str(resume)
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        logging_strategy="no",
    )
    trainer = Trainer(model(), arguments, train_dataset=samples(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, callback


def test_the_model_gets_smaller_and_goes_on_from_a_checkpoint_after_a_prune(tmp_path: Path) -> None:
    trainer, callback = trained(tmp_path / "whole")
    assert callback.pruner.done
    assert callback.pruner.number == 3
    small = trainer.model
    assert type(small) is BertForSequenceClassification
    assert sum(p.numel() for p in small.parameters()) <= 0.7 * sum(p.numel() for p in model().parameters())
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {
        id(parameter) for parameter in small.parameters()
    }
    first = tmp_path / "whole" / "checkpoint-3"
    assert (first / FILE).exists()
    again, resumed = trained(tmp_path / "again", resume=first)
    assert resumed.pruner.number == 3
    expected = small.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name


def test_a_checkpoint_without_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxprune.FileError, match=r"no state of a pruner\n  at .*fxprune_pruner.json"):
        trained(tmp_path / "x", resume=tmp_path)


def test_wrong_options_are_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": {"params": 3.0}}
    callback = TrainerPruningCallback({"input_ids": torch.zeros(1, 6, dtype=torch.int64)}, **options)
    with pytest.raises(fxprune.PlanError, match="a share must be in"):
        Trainer(model(), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]), callbacks=[callback])


def test_the_adafactor_of_transformers_keeps_the_means_of_what_stays() -> None:
    network = net()
    optimizer = Adafactor(network.parameters(), lr=0.01, relative_step=False, scale_parameter=False)
    step(network, optimizer, 0)
    before = copy.deepcopy({name: optimizer.state[p] for name, p in network.named_parameters()})
    small = fxprune.transform(network, batch(0), ratio=0.5, optimizer=optimizer)
    removed = fxprune.record(small).removed
    for name, parameter in small.named_parameters():
        for key, lacking in (("exp_avg_sq_row", -1), ("exp_avg_sq_col", -2)):
            if key in before[name]:
                lost = {dim: slots for dim, slots in removed.get(name, {}).items() if dim != parameter.ndim + lacking}
                expected = kept(before[name][key].unsqueeze(lacking), lost).squeeze(lacking)
                assert torch.equal(optimizer.state[parameter][key], expected), (name, key)
    assert any("Adafactor holds means over rows" in reason for reason in fxprune.record(small).reasons)
    step(small, optimizer, 1)


def test_a_callback_may_be_added_to_a_trainer(tmp_path: Path) -> None:
    example = {"input_ids": torch.stack([sample["input_ids"] for sample in samples()[:2]])}
    arguments = TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, report_to=[], disable_tqdm=True)
    for resume_from in (None, tmp_path):
        trainer = Trainer(model(), arguments, train_dataset=samples())
        options: dict[str, Any] = {"every_n_steps": 1, "resume_from": resume_from}
        callback = TrainerPruningCallback(example, keep={"params": 0.7}, steps=2, **options)
        trainer.add_callback(callback)
        if resume_from is None:
            trainer.train()
            assert callback.pruner is not None
            assert callback.pruner.done
        else:
            with pytest.raises(fxprune.PlanError, match=r"loaded before the pruner is made\n  at .*\n  why .*\n  do "):
                trainer.train()
