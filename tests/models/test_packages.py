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


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["yolov8", "yolov8-seg"])
def test_the_packages_own_trainer_goes_on_with_a_small_model(name: str, fresh: bool, tmp_path: Path) -> None:
    from PIL import Image
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer

    boxes = "0 0.5 0.5 0.4 0.4\n2 0.3 0.6 0.2 0.3\n"
    outlines = "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7\n2 0.2 0.4 0.4 0.4 0.4 0.8\n"
    generator = np.random.default_rng(SEED)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "labels" / f"{number}.txt").write_text(outlines if name.endswith("-seg") else boxes)
    names = "\n".join(f"  {number}: class{number}" for number in range(5))
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames:\n{names}\n")
    small, _, _ = pruned(name, fresh=fresh)
    small = small.float()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}

    kind: Any = SegmentationTrainer if name.endswith("-seg") else DetectionTrainer

    class Trainer(kind):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return small

    options: dict[str, Any] = {
        "data": str(data),
        "epochs": 2,
        "imgsz": 64,
        "batch": 2,
        "nbs": 2,
        "workers": 0,
        "device": "cpu",
        "plots": False,
    }
    trainer = Trainer(
        overrides={"model": name.replace("yolov8", "yolov8n") + ".yaml", "project": str(tmp_path / "runs"), **options}
    )
    trainer.train()
    assert trainer.last.exists()
    saved = torch.load(trainer.last, weights_only=False)["model"]
    assert type(saved) is type(small)
    assert {name: p.shape for name, p in saved.named_parameters()} == {name: p.shape for name, p in before.items()}
    assert any(not torch.equal(p.detach(), before[name]) for name, p in small.named_parameters())
