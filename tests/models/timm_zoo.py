"""The smallest registered model of every architecture family of timm, a family being a file of `timm.models`.

`python -m tests.models.timm_zoo` computes the choice again (minutes) and prints it; a family that the table below
does not know, or whose model is gone, is computed when it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.models.zoo import Entry, numbers, ready
from tests.support import torchvision, uninitialised

SMALLEST = dict(
    pair.split(":")
    for pair in """
    beit:beit_base_patch16_224 byoanet:halonet_h1 byobnet:test_byobnet cait:cait_xxs24_224 coat:coat_tiny
    convit:convit_tiny convmixer:convmixer_768_32 convnext:test_convnext cpubone:cpubone_nano
    crossvit:crossvit_tiny_240 csatv2:csatv2 cspnet:cs3darknet_focus_s cspnext:cspnext_tiny davit:davit_tiny
    deepseek_vit:deepseek_vit_412m deit:deit_tiny_patch16_224 densenet:densenet121 dla:dla46x_c dpn:dpn48b
    edgenext:edgenext_xx_small efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0
    efficientnet:test_efficientnet efficientvim:efficientvim_m1 efficientvit_mit:efficientvit_b0
    efficientvit_msra:efficientvit_m0 eva:vit_tiny_patch16_dinov3_qkvb fasternet:fasternet_t0 fastvit:fastvit_t8
    focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny gemma4_vit:gemma4_vit_167m ghostnet:ghostnet_050
    hardcorenas:hardcorenas_b hgnet:hgnetv2_b0 hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny
    hrnet:hrnet_w18_small iformer:iformer_t inception_next:inception_next_atto
    inception_resnet_v2:inception_resnet_v2 inception_v3:inception_v3 inception_v4:inception_v4
    lcnetv2:lcnetv2_small levit:levit_128s lowformer:lowformer_b0 mambaout:test_mambaout maxxvit:test_coatnet
    metaformer:poolformerv2_s12 mlp_mixer:gmlp_ti16_224 mobilenetv3:mobilenetv3_small_050
    mobilenetv5:mobilenetv5_base mobilevit:mobilevit_xxs mvitv2:mvitv2_tiny
    naflexvit:naflexvit_base_patch16_parfac_gap nasnet:nasnetalarge nest:nest_tiny nextvit:nextvit_small
    nfnet:test_nfnet pit:pit_ti_224 pnasnet:pnasnet5large pvt_v2:pvt_v2_b0 qwen3_vit:qwen3_vit_88m
    rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050 repvit:repvit_m1 res2net:res2next50
    resnest:resnest14d resnet:test_resnet resnetv2:resnetv2_18 rexnet:rexnet_100 selecsls:selecsls42
    senet:legacy_seresnet18 sequencer:sequencer2d_s shvit:shvit_s1 sknet:skresnet18 starnet:starnet_s050
    swiftformer:swiftformer_xs swin_transformer:swin_tiny_patch4_window7_224
    swin_transformer_v2:swinv2_tiny_window8_256 swin_transformer_v2_cr:swinv2_cr_tiny_224
    tiny_vit:tiny_vit_5m_224 tnt:tnt_s_legacy_patch16_224 tresnet:tresnet_m twins:twins_svt_small vgg:vgg11
    visformer:visformer_tiny vision_transformer:test_vit vision_transformer_hybrid:vit_tiny_r_s16_p8_224
    vision_transformer_relpos:test_vit_relpos vision_transformer_sam:samvit_base_patch16_224
    vitamin:vitamin_small_224 volo:volo_d1_224 vovnet:ese_vovnet19b_slim_dw xception:legacy_xception
    xception_aligned:xception41p xcit:xcit_nano_12_p8_224
    """.split()
)

# What is made smaller than registered: above some 80 M parameters, or images that take minutes.
OPTIONS: dict[str, dict[str, Any]] = {
    "beit": {"depth": 3, "img_size": 96},
    "deepseek_vit": {"depth": 3, "img_size": 98},
    "gemma4_vit": {"depth": 3},
    "qwen3_vit": {"depth": 3},
    "naflexvit": {"depth": 3},
    "vision_transformer_sam": {"depth": 4, "img_size": 128, "global_attn_indexes": (1, 3)},
}
PIXELS = (64, 96, 128, 160, 192, 224, 256)
"""Sides of the image, in the order in which they are tried; the registered one is tried last."""


def entries() -> Iterator[Entry]:
    torchvision()  # which it imports
    import timm

    for family in timm.models.list_modules():
        options = OPTIONS.get(family, {})
        note = ", ".join([f"family {family}", *(f"{k}={v}" for k, v in options.items())])
        yield Entry("timm", choice(family), functools.partial(build, family), note)


def choice(family: str) -> str:
    import timm

    name = SMALLEST.get(family, "")
    return name if name in timm.list_models(module=family) else smallest(family)


def smallest(family: str) -> str:
    """The model of this family with the fewest parameters. Those that the meta device cannot make are passed over."""
    import timm

    sizes = {}
    for name in timm.list_models(module=family):
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        except (RuntimeError, NotImplementedError):
            continue
    return min(sizes, key=lambda name: (sizes[name], name))


def build(family: str) -> tuple[nn.Module, Any]:
    import timm

    name, options = choice(family), OPTIONS.get(family, {})
    with uninitialised():
        model = timm.create_model(name, **options).eval()
    configured = model.default_cfg
    registered = configured["input_size"][-1]
    if "img_size" in options:
        sides: tuple[int, ...] = (options["img_size"],)
    else:
        sides = (registered,) if configured.get("fixed_input_size") else (*PIXELS, registered)
    for side in sides:
        x = (numbers(2, 3, side, side),)
        try:
            return ready(model, x)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            if side == sides[-1]:
                raise
    raise AssertionError("unreachable")


if __name__ == "__main__":
    torchvision()
    import timm

    print(*(f"{family}:{smallest(family)}" for family in timm.models.list_modules()), sep="\n")
