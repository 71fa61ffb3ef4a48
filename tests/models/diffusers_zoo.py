"""Small models of diffusers: U-nets, autoencoders, transformers and a control net, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.models.zoo import Entry, ids, numbers, ready
from tests.support import uninitialised

BLOCKS = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 20,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
LATENTS = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "latent_channels": 4,
}
PATCHES = {"sample_size": 8, "patch_size": 2, "num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 8}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    },
    "UNet2DConditionModel": {**BLOCKS, "sample_size": 16, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    "AutoencoderKL": LATENTS,
    "VQModel": {**LATENTS, "num_vq_embeddings": 24},
    "DiTTransformer2DModel": {**PATCHES, "in_channels": 4, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
    "PixArtTransformer2DModel": {
        **PATCHES,
        "cross_attention_dim": 24,
        "caption_channels": 20,
        "use_additional_conditions": False,
    },
    "SD3Transformer2DModel": {
        **PATCHES,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": 20,
        "caption_projection_dim": 24,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    },
    "FluxTransformer2DModel": {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (4, 4, 8),
    },
    "ControlNetModel": {**BLOCKS, "conditioning_embedding_out_channels": (8, 12)},
}


def entries() -> Iterator[Entry]:
    for name in CONFIGS:
        yield Entry("diffusers", name, functools.partial(build, name))


def build(name: str) -> Any:
    import diffusers

    with uninitialised():
        model = getattr(diffusers, name)(**CONFIGS[name])
    return ready(model, inputs(name))


def inputs(name: str) -> dict[str, Any]:
    """The arguments of a call: noisy latents, the step, text; or an image."""
    time = torch.tensor([3, 7])
    text, pooled = numbers(2, 5, 20), numbers(2, 12)
    if name in ("AutoencoderKL", "VQModel"):
        return {"sample": numbers(2, 3, 16, 16)}
    if name == "UNet2DModel":
        return {"sample": numbers(2, 3, 16, 16), "timestep": time}
    if name == "UNet2DConditionModel":
        return {"sample": numbers(2, 4, 16, 16), "timestep": time, "encoder_hidden_states": text}
    if name == "ControlNetModel":
        control = {"controlnet_cond": numbers(2, 3, 32, 32), "conditioning_scale": 1.0}
        return {"sample": numbers(2, 4, 16, 16), "timestep": time, "encoder_hidden_states": text, **control}
    if name == "DiTTransformer2DModel":
        return {"hidden_states": numbers(2, 4, 8, 8), "timestep": time, "class_labels": ids(9, 2)}
    if name == "PixArtTransformer2DModel":
        return {"hidden_states": numbers(2, 4, 8, 8), "timestep": time, "encoder_hidden_states": text}
    given = {"timestep": time.double(), "encoder_hidden_states": text, "pooled_projections": pooled}
    if name == "SD3Transformer2DModel":
        return {"hidden_states": numbers(2, 4, 8, 8), **given}
    places = {"img_ids": _places(3, 4), "txt_ids": torch.zeros(5, 3).double()}
    return {"hidden_states": numbers(2, 12, 4), **given, **places}


def _places(height: int, width: int) -> torch.Tensor:
    """Row and column of every patch, [patches, 3]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3).double()
