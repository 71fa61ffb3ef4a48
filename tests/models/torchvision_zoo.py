"""Every model of torchvision for classification, segmentation and video, with random weights."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from torch import nn

from tests.models.zoo import Entry, numbers, ready
from tests.support import torchvision, uninitialised

# Shape of one input; by default images of 64 pixels. More where an unpadded stem or fixed windows ask for it.
SHAPES: dict[str, tuple[int, ...]] = {
    "alexnet": (2, 3, 96, 96),
    "inception_v3": (2, 3, 299, 299),
    "maxvit_t": (1, 3, 224, 224),
    "s3d": (1, 3, 16, 224, 224),
    "mvit_v1_b": (2, 3, 8, 64, 64),
    "mvit_v2_s": (2, 3, 8, 64, 64),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_b_16": {"image_size": 64},
    "vit_b_32": {"image_size": 64},
    "fcn_resnet50": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
}
# Models whose float64 weights, three times over, do not fit next to others; and fixed clips of 16 large frames.
# Model -> file, class that it instantiates, arguments of that class to replace.
SMALLER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit_l_16": ("vision_transformer", "VisionTransformer", {"num_layers": 3, "image_size": 64}),
    "vit_l_32": ("vision_transformer", "VisionTransformer", {"num_layers": 3, "image_size": 64}),
    "vit_h_14": ("vision_transformer", "VisionTransformer", {"num_layers": 3, "image_size": 70}),
    "mvit_v1_b": ("video.mvit", "MViT", {"spatial_size": (64, 64), "temporal_size": 8}),
    "mvit_v2_s": ("video.mvit", "MViT", {"spatial_size": (64, 64), "temporal_size": 8}),
}
SHAPES["vit_h_14"] = (2, 3, 70, 70)


def entries() -> Iterator[Entry]:
    models = torchvision().models
    for module, shape in (
        (models, (2, 3, 64, 64)),
        (models.segmentation, (2, 3, 64, 64)),
        (models.video, (2, 3, 8, 64, 64)),
    ):
        for name in models.list_models(module=module):
            yield Entry("torchvision", name, functools.partial(build, name, SHAPES.get(name, shape)), note(name))


def note(name: str) -> str:
    if name == "regnet_y_128gf":
        return "depths 1, 1, 2, 1"
    return ", ".join(f"{k}={v}" for k, v in SMALLER.get(name, ("", "", {}))[2].items())


def build(name: str, shape: tuple[int, ...], **options: Any) -> tuple[nn.Module, Any]:
    return ready(make(name, **options), (numbers(*shape),))


def make(name: str, **options: Any) -> nn.Module:
    models = torchvision().models
    options = {**OPTIONS.get(name, {}), **options}
    if name in SEGMENTATION:
        options["weights_backbone"] = None
    with uninitialised():
        if name == "regnet_y_128gf":
            return shallow_regnet(models.regnet)
        if name not in SMALLER:
            return models.get_model(name, **options)
        file, cls, replaced = SMALLER[name]
        with smaller(importlib.import_module(f"torchvision.models.{file}"), cls, replaced):
            return models.get_model(name, **options)


SEGMENTATION = (
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet101", "deeplabv3_resnet50"),
    *("fcn_resnet101", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
)


def smaller(module: Any, name: str, replaced: Mapping[str, Any]) -> Any:
    """Replaces some arguments of a class of this module while the context lasts."""
    cls = getattr(module, name)
    return mock.patch.object(module, name, lambda *args, **kwargs: cls(*args, **{**kwargs, **replaced}))


def shallow_regnet(regnet: Any) -> nn.Module:
    """`regnet_y_128gf` at its full widths and 5 of its 27 blocks: all of it in float64 takes 5.2 GB."""
    params = regnet.BlockParams.from_init_params(
        depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264, se_ratio=0.25
    )
    params.depths = [1, 1, 2, 1]
    return regnet.RegNet(params, norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-05, momentum=0.1))
