"""A training by a framework in two processes, which prunes and goes on from its checkpoint: run by torchrun.

torchrun --nproc-per-node 2 -m tests.integrations.two_processes transformers FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tests.support import torchvision

torchvision()
warnings.simplefilter("ignore")


def by_transformers(folder: Path, resume: bool) -> tuple[nn.Module, Any]:
    """The Trainer, with gradient accumulation and autocast to bfloat16."""
    from transformers import Trainer, TrainingArguments

    from fxprune.integrations.transformers import TrainerPruningCallback
    from tests.integrations.test_transformers import model, samples

    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    first = str(found[0]) if resume else None
    example = {"input_ids": torch.stack([sample["input_ids"] for sample in samples()[:2]])}
    callback = TrainerPruningCallback(example, keep={"params": 0.7}, steps=2, resume_from=first)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=True,
        ddp_backend="gloo",
        logging_strategy="no",
    )
    trainer = Trainer(model(), arguments, train_dataset=samples(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=first)
    return trainer.model, callback.pruner


def by_lightning(folder: Path, resume: bool) -> tuple[nn.Module, Any]:
    """Lightning, with gradient accumulation and clipping."""
    import lightning.pytorch as pl

    from fxprune.integrations.lightning import LightningPruningCallback
    from tests.integrations.test_lightning import Task, batch, loader

    task = Task()
    callback = LightningPruningCallback("net", batch(0), keep={"macs": 0.3}, steps=3)
    trainer = pl.Trainer(
        max_epochs=4,
        callbacks=[callback, pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(task, loader(), ckpt_path=folder / "epoch=1.ckpt" if resume else None)
    return task.net, callback.pruner


TRAININGS = {"transformers": by_transformers, "lightning": by_lightning}


def main(name: str, folder: str) -> None:
    """Train, compare the processes, go on from the checkpoint, and compare again."""
    trained = []
    for resume in (False, True):
        model, pruner = TRAININGS[name](Path(folder), resume)
        assert pruner.done
        assert pruner.plan.removed
        flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        both = [torch.empty_like(flat) for _ in range(2)]
        distributed.all_gather(both, flat)
        assert torch.equal(*both), "the processes have different models"
        trained.append(flat)
    assert torch.equal(*trained), "the resumed run ends otherwise"
    print("process", distributed.get_rank(), "is done")


if __name__ == "__main__":
    main(*sys.argv[1:])
