"""Models of ultralytics, built from the package's own descriptions, narrower, with random weights.

The package is under the AGPL: nothing imports it but this file, when it is asked for a model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.models.zoo import Entry, numbers, ready

DETECT = (
    *("yolov3-tiny", "yolov3", "yolov5", "yolov6", "yolov8", "yolov8-ghost", "yolov9t", "yolov9c", "yolov10n"),
    *("yolo11", "yolo12", "yolo26"),
)
OTHER = (
    *("yolov8-seg", "yolov8-pose", "yolov8-cls", "yolov8-obb"),
    *("yolo11-seg", "yolo11-pose", "yolo11-cls", "yolo11-obb"),
    *("yolo12-seg", "yolo26-seg", "yolo26-pose", "yolo26-cls", "yolo26-obb", "rtdetr-l", "rtdetr-resnet50"),
)
PIXELS = 64
CLASSES = 5
WIDTH, DEPTH = 0.25, 0.34
"""Multipliers of channels and of repeated blocks."""

TASKS = {
    "DetectionModel": "detect",
    "SegmentationModel": "segment",
    "PoseModel": "pose",
    "OBBModel": "obb",
    "ClassificationModel": "classify",
}
"""Class -> what the package calls its task."""


def entries() -> Iterator[Entry]:
    for name in DETECT + OTHER:
        yield Entry("ultralytics", name, functools.partial(build, name))


def build(name: str) -> tuple[nn.Module, Any]:
    """A model that never ran but to learn its strides."""
    return ready(make(name), (numbers(2, 3, PIXELS, PIXELS).sigmoid(),))


def make(name: str) -> Any:
    from ultralytics.nn import tasks
    from ultralytics.utils import DEFAULT_CFG

    model = getattr(tasks, kind(name))(description(name), verbose=False)
    model.args, model.nc = DEFAULT_CFG, CLASSES  # as the package's trainer sets them
    return model


def kind(name: str) -> str:
    """The class of a model.

    >>> kind("yolo11-seg")
    'SegmentationModel'
    """
    kinds = {"seg": "Segmentation", "pose": "Pose", "cls": "Classification", "obb": "OBB"}
    if name.startswith("rtdetr"):
        return "RTDETRDetectionModel"
    return kinds.get(name.rpartition("-")[2], "Detection") + "Model"


def description(name: str) -> dict[str, Any]:
    """The description of a model by the package, with few classes and one scale of its own."""
    from ultralytics.nn.tasks import yaml_model_load

    given = yaml_model_load(f"{name}.yaml")
    given["nc"] = CLASSES
    if "scales" in given and not re.fullmatch(r"yolov10\w|yolov9\w", name):
        given["scales"] = {"n": [DEPTH, WIDTH, 1024]}
        given["scale"] = "n"
    return given


def batch(name: str) -> dict[str, Any]:
    """Images and what is on them in float32, as the losses take it."""
    boxes = torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.6, 0.3, 0.5, 0.3], [0.5, 0.5, 0.6, 0.7]])
    given = {"img": numbers(2, 3, PIXELS, PIXELS).sigmoid().float(), "bboxes": boxes}
    given |= {"batch_idx": torch.tensor([0.0, 0.0, 1.0]), "cls": torch.tensor([[0.0], [2.0], [4.0]])}
    if name.endswith("-cls"):
        given["cls"] = torch.tensor([1, 3])
    if name.endswith("-obb"):
        given["bboxes"] = torch.cat((boxes, torch.tensor([[0.1], [0.4], [0.7]])), 1)
    if name.endswith("-seg"):
        rows = torch.arange(PIXELS // 4) < PIXELS // 8
        given["masks"] = torch.stack([rows[:, None] & rows, ~rows[:, None] & rows]).float()
        given["sem_masks"] = given["masks"].long()
    if name.endswith("-pose"):
        given["keypoints"] = torch.rand(3, 17, 3, generator=torch.Generator().manual_seed(1))
    return given
