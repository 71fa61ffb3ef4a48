"""Torchvision's detectors with their compiled operators, thresholds of 0, and random weights that give boxes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.models.zoo import SEED, Entry, numbers, ready
from tests.support import torchvision, uninitialised

CLASSES = 5
SMALL = (64, 80)
"""Height and width of the two images, where the model does not fix them."""

REGRESSION = ("rpn.head.bbox_pred", "roi_heads.box_predictor.bbox_pred")
"""Layers whose results move boxes; made small, so that boxes of random weights stay in their image and have a size."""


def entries() -> Iterator[Entry]:
    if not compiled():
        return
    for name, make in MODELS.items():
        size = {"ssd300": (300, 300), "ssdlite320": (320, 320)}.get(name, SMALL)
        yield Entry("detectors", name, functools.partial(build, make, size), training=functools.partial(targets, size))


def compiled() -> bool:
    """True if torchvision's operators fit the torch that is installed."""
    return bool(torchvision().extension._has_ops())


def build(make: Callable[[], nn.Module], size: tuple[int, int]) -> tuple[nn.Module, Any]:
    with uninitialised():
        model = make()
    model, inputs = ready(model, (images(size),))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(REGRESSION):
                parameter.mul_(1e-3)
    return model, inputs


def images(size: tuple[int, int]) -> list[torch.Tensor]:
    return list(numbers(2, 3, *size).sigmoid())


def targets(size: tuple[int, int]) -> tuple[Any, ...]:
    """Images and their boxes, as training takes them; masks and keypoints too, for the models that read them."""
    generator = torch.Generator().manual_seed(SEED)
    given = []
    for count in (2, 3):
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 20
        boxes = torch.cat((corner, corner + 24 + 12 * torch.rand(count, 2, generator=generator).double()), 1)
        labels = torch.randint(1, CLASSES, (count,), generator=generator)
        masks = (torch.rand(count, *size, generator=generator) < 0.5).to(torch.uint8)
        points = boxes[:, None, :2].float() + 10 * torch.rand(count, 4, 2, generator=generator)
        points = torch.cat((points, torch.ones(count, 4, 1)), 2)
        given.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": points})
    return images(size), given


def pyramid() -> nn.Module:
    """ResNet-18 and its feature pyramid."""
    utils = torchvision().models.detection.backbone_utils
    return utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


def sizes() -> dict[str, Any]:
    return {"min_size": SMALL[0], "max_size": SMALL[1]}


def dense(name: str) -> nn.Module:
    options = {"score_thresh": 0.0, "detections_per_img": 30, "topk_candidates": 60}
    return _class(name)(pyramid(), CLASSES, **options, **sizes())


def faster(name: str, **options: Any) -> nn.Module:
    few = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 20}
    return _class(name)(pyramid(), CLASSES, box_score_thresh=0.0, **few, **sizes(), **options)


def masks() -> nn.Module:
    """Mask R-CNN with 2 layers of 64 channels for the masks, instead of 4 of 256."""
    made, module = faster("MaskRCNN"), torchvision().models.detection.mask_rcnn
    heads: Any = made.roi_heads
    heads.mask_head = module.MaskRCNNHeads(256, (64, 64), 1)
    heads.mask_predictor = module.MaskRCNNPredictor(64, 64, CLASSES)
    return made


def keypoints() -> nn.Module:
    """Keypoint R-CNN with 2 layers of 64 channels for the keypoints, instead of 8 of 512."""
    made, module = faster("KeypointRCNN"), torchvision().models.detection.keypoint_rcnn
    heads: Any = made.roi_heads
    heads.keypoint_head = module.KeypointRCNNHeads(256, (64, 64))
    heads.keypoint_predictor = module.KeypointRCNNPredictor(64, 4)
    return made


def ssd(name: str) -> nn.Module:
    options = {"score_thresh": 0.0, "detections_per_img": 30, "topk_candidates": 60, "num_classes": CLASSES}
    return getattr(torchvision().models.detection, name)(weights=None, weights_backbone=None, **options)


def _class(name: str) -> Any:
    return getattr(torchvision().models.detection, name)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "retinanet": functools.partial(dense, "RetinaNet"),
    "fcos": functools.partial(dense, "FCOS"),
    "fasterrcnn": functools.partial(faster, "FasterRCNN"),
    "maskrcnn": masks,
    "keypointrcnn": keypoints,
    "ssd300": functools.partial(ssd, "ssd300_vgg16"),
    "ssdlite320": functools.partial(ssd, "ssdlite320_mobilenet_v3_large"),
}
