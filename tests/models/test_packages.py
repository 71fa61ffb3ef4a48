"""Small models in the hands of a package's users: trained, fused, exported and saved with the package's own code.

By hand only: ultralytics is under the AGPL and is in no extra, diffusers is in the extra "zoo".
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from tests.models import ultralytics_zoo
from tests.models.measure import error_of, run
from tests.models.zoo import SEED, numbers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("ultralytics") is None,
        reason="ultralytics is under the AGPL, which the test extra must not bring in: install it by hand",
    ),
]

KINDS = ("yolov8", "yolo26", "yolov8-seg", "yolo11-pose", "yolo11-obb", "yolov8-cls", "yolov10n", "yolov9t", "rtdetr-l")
WITH_LOSSES = [name for name in KINDS if not name.startswith("rtdetr")]
"""RT-DETR embeds the classes of what is on an image, in a call with targets only, which no example input is."""


def pruned(name: str, *, fresh: bool = False) -> tuple[Any, nn.Module, Any]:
    """A small model, the masked original and the inputs. fresh: True if the original has never seen an image."""
    model, inputs = ultralytics_zoo.build(name)
    if fresh:
        for module in model.modules():
            for cached in ("anchors", "strides", "shape", "shapes", "valid_mask"):
                if hasattr(type(module), cached):  # what the class has before the first image
                    vars(module).pop(cached, None)
    small = fxprune.transform(model, inputs, ratio=0.3, importance="random", seed=SEED, exact=True)
    assert type(small) is type(model)
    return small, fxprune.masked(model, fxprune.record(small).removed), inputs


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_and_their_gradients_are_those_of_the_masked_original(name: str) -> None:
    small, reference, _ = pruned(name)
    losses, gradients = [], []
    for model in (small, reference):
        model = copy.deepcopy(model).float().train()
        torch.manual_seed(SEED)
        loss = model({k: v.clone() for k, v in ultralytics_zoo.batch(name).items()})[0].sum()
        loss.backward()
        losses.append(float(loss))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert set(gradients[0]) == set(gradients[1])


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_small_model_takes_other_sizes_and_fuses(name: str, fresh: bool) -> None:
    small, reference, inputs = pruned(name, fresh=fresh)
    if not name.startswith("rtdetr"):
        other = (numbers(1, 3, 96, 64).sigmoid(),)
        assert error_of(run(copy.deepcopy(small), other), run(copy.deepcopy(reference), other)) < 1e-9
    fused = [model.fuse(verbose=False) for model in (small, reference)]
    assert error_of(run(fused[0], inputs), run(fused[1], inputs)) < 1e-9


@pytest.mark.parametrize("name", KINDS)
def test_a_fused_model_is_pruned(name: str) -> None:
    model, inputs = ultralytics_zoo.build(name)
    model = model.fuse(verbose=False)
    small = fxprune.transform(model, inputs, ratio=0.3, importance="random", seed=SEED)
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["yolov8", "yolov8-cls"])
def test_the_packages_own_export_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.engine.exporter import Exporter

    monkeypatch.chdir(tmp_path)
    small, _, inputs = pruned(name)
    small, images = small.float(), inputs[0].float()
    small.pt_path = small.yaml_file = str(tmp_path / f"{name}.pt")
    small.task = ultralytics_zoo.TASKS[type(small).__name__]
    sizes = {"imgsz": ultralytics_zoo.PIXELS, "batch": len(images), "device": "cpu"}
    file = Exporter(overrides={"format": "torchscript", **sizes})(model=small)
    given = torch.jit.load(file)(images)
    with torch.no_grad():
        own = small.eval()(images)[0]
    given = given[0] if isinstance(given, tuple) else given
    assert error_of(given, own) < 1e-3


def images_with_labels(folder: Path, *, outlines: bool) -> Path:
    """The description of four images with two things on each, as the package's trainers read them."""
    from PIL import Image

    label = "0 0.5 0.5 0.4 0.4\n2 0.3 0.6 0.2 0.3\n"
    if outlines:
        label = "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7\n2 0.2 0.4 0.4 0.4 0.4 0.8\n"
    generator = np.random.default_rng(SEED)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(4):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(label)
    names = "\n".join(f"  {number}: class{number}" for number in range(5))
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}\n")
    return data


def trainer_of(name: str, small: nn.Module, **options: Any) -> Any:
    """The package's own trainer for a model; when it goes on from a file, for the one in the file."""
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer

    kind: Any = SegmentationTrainer if name.endswith("-seg") else DetectionTrainer

    class Trainer(kind):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return small if weights is None else weights

    same = {"imgsz": 64, "batch": 2, "nbs": 2, "workers": 0, "device": "cpu", "plots": False}
    return Trainer(overrides={"model": name.replace("yolov8", "yolov8n") + ".yaml", **same, **options})


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["yolov8", "yolov8-seg"])
def test_the_packages_own_trainer_goes_on_with_a_small_model(name: str, fresh: bool, tmp_path: Path) -> None:
    data = images_with_labels(tmp_path, outlines=name.endswith("-seg"))
    small = pruned(name, fresh=fresh)[0].float()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    trainer = trainer_of(name, small, data=str(data), epochs=2, project=str(tmp_path / "runs"))
    trainer.train()
    assert trainer.last.exists()
    saved = torch.load(trainer.last, weights_only=False)["model"]
    assert type(saved) is type(small)
    assert shapes(saved) == shapes(small) == {name: p.shape for name, p in before.items()}
    assert any(not torch.equal(p.detach(), before[name]) for name, p in small.named_parameters())


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["yolov8", "yolo26", "yolov8-seg"])
def test_the_packages_own_trainer_resumes_a_small_model(name: str, fresh: bool, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(trainer: Any) -> None:
        raise StoppedError

    data = images_with_labels(tmp_path, outlines=name.endswith("-seg"))
    small = pruned(name, fresh=fresh)[0].float()
    first = trainer_of(name, small, data=str(data), epochs=3, project=str(tmp_path / "runs"))
    first.add_callback("on_model_save", stop)
    with pytest.raises(StoppedError):
        first.train()
    again = trainer_of(name, small, data=str(data), resume=str(first.last))
    epochs: list[int] = []
    again.add_callback("on_train_epoch_end", lambda trainer: epochs.append(trainer.epoch))
    again.train()
    assert epochs == [1, 2]
    assert again.model is not small
    assert type(again.model) is type(small)
    assert shapes(again.model) == shapes(small)
    assert any(not torch.equal(p, small.get_parameter(n)) for n, p in again.model.named_parameters())
    assert fxprune.record(again.model).removed == fxprune.record(small).removed
