"""Small random instances of models of `transformers`, made from their configurations; nothing is downloaded.

All sizes of one configuration differ from each other, as far as the architecture allows, so that no dimension fits
another one by accident. Caches are what they are by default.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.models.transformers_more import MORE
from tests.models.transformers_sizes import (
    CLIP,
    DECODER,
    ENCODER,
    GPT,
    GROUPED,
    IMAGE,
    LENGTH,
    SEQ2SEQ,
    SIDES,
    SOUND,
    T5,
    TARGET,
    VISION,
    WINDOWS,
)
from tests.models.zoo import Entry, ids, numbers, ready
from tests.support import torchvision

# class -> configuration class, its arguments, what the model reads
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BertForMaskedLM": ("BertConfig", ENCODER, "text"),
    "RobertaForSequenceClassification": ("RobertaConfig", {**ENCODER, "num_labels": 5}, "text"),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"vocab_size": 97, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 72, "num_labels": 5},
        "text",
    ),
    "AlbertForSequenceClassification": (
        "AlbertConfig",
        {**ENCODER, "embedding_size": 20, "num_hidden_layers": 3, "num_hidden_groups": 1, "num_labels": 5},
        "text",
    ),
    "ElectraForTokenClassification": ("ElectraConfig", {**ENCODER, "embedding_size": 20, "num_labels": 5}, "text"),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {**GPT, "n_inner": 72},
        "text",
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            **{k: v for k, v in ENCODER.items() if k != "intermediate_size"},
            "ffn_dim": 72,
            "word_embed_proj_dim": 20,
            "pad_token_id": 1,
        },
        "text",
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", ENCODER, "text"),
    "LlamaForCausalLM": ("LlamaConfig", DECODER, "text"),
    "MistralForCausalLM": ("MistralConfig", {**DECODER, "sliding_window": 5}, "text"),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED, "text"),
    "Qwen3ForCausalLM": ("Qwen3Config", DECODER, "text"),
    "GemmaForCausalLM": ("GemmaConfig", DECODER, "text"),
    "Phi3ForCausalLM": ("Phi3Config", {**GROUPED, "pad_token_id": 0}, "text"),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**DECODER, "num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"},
        "text",
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {
            **T5,
            "num_layers": 3,  # the cache has as many layers as the encoder
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        "text to text",
    ),
    "BartForConditionalGeneration": ("BartConfig", {**SEQ2SEQ, "max_position_embeddings": 40}, "text to text"),
    "ViTForImageClassification": ("ViTConfig", {**VISION, "num_labels": 5}, "image"),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {**VISION, "num_labels": 5}, "image"),
    "SwinForImageClassification": (
        "SwinConfig",
        WINDOWS,
        "image",
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        SIDES,
        "image",
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {
            "hidden_sizes": [20, 28, 36, 44],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 52,
            "mlp_ratios": [2, 2, 3, 3],
            "num_labels": 5,
        },
        "large image",
    ),
    "Dinov2ForImageClassification": (
        "Dinov2Config",
        {**{k: v for k, v in VISION.items() if k != "intermediate_size"}, "mlp_ratio": 2, "num_labels": 5},
        "image",
    ),
    "CLIPModel": (
        "CLIPConfig",
        CLIP,
        "text and image",
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**SEQ2SEQ, "num_mel_bins": 14, "max_source_positions": 23, "max_target_positions": 40, "pad_token_id": 2},
        "spectrum",
    ),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", SOUND, "sound"),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 97, "hidden_size": 48, "state_size": 10, "num_hidden_layers": 2, "time_step_rank": 5},
        "text",
    ),
    **MORE,
}


def entries() -> Iterator[Entry]:
    torchvision()  # which it imports
    import transformers

    for name in MODELS:
        if hasattr(transformers, name):
            yield Entry("transformers", name, functools.partial(build, name))


def build(name: str) -> tuple[nn.Module, Any]:
    torchvision()  # which it imports
    import transformers

    config, arguments, reads = MODELS[name]
    torch.manual_seed(0)
    return ready(getattr(transformers, name)(getattr(transformers, config)(**copy.deepcopy(arguments))), inputs(reads))


def inputs(reads: str) -> dict[str, Any]:
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, -3:] = 0  # the second text is shorter
    only = {"input_ids": ids(97, 2, LENGTH)}
    text, target = {**only, "attention_mask": mask}, {"decoder_input_ids": ids(97, 2, TARGET)}
    image, frames = {"pixel_values": numbers(2, 3, IMAGE, IMAGE)}, numbers(2, 24, 14)
    patches = torch.full((2, (IMAGE // 16) ** 2), 96)
    return {
        "ids": only,
        "text": text,
        "text to text": {**text, **target},
        "text to text, mask of fractions": {**only, "attention_mask": mask.double(), **target},
        "boxes": {**text, "bbox": ids(30, 2, LENGTH, 4).sort(-1).values},
        "image": image,
        "large image": {"pixel_values": numbers(2, 3, 64, 64)},
        "video": {"pixel_values": numbers(2, 4, 3, IMAGE, IMAGE)},
        "text and image": {**text, **image},
        "text with images": {"input_ids": torch.cat([patches, only["input_ids"].clamp(max=95)], 1), **image},
        "text and features": {**text, "visual_embeds": numbers(2, 5, 20)},
        "spectrum": {"input_features": numbers(2, 14, 46), **target},
        "frames": {"input_values": frames},
        "frames to text": {"input_features": frames, **target},
        "sound": {"input_values": numbers(2, 400)},
        "sound to text": {"input_values": numbers(2, 2000), **target},
        "series": {"past_values": numbers(2, 24, 3)},
        "trajectory": {
            "states": numbers(2, TARGET, 9),
            "actions": numbers(2, TARGET, 4),
            "rewards": numbers(2, TARGET, 1),
            "returns_to_go": numbers(2, TARGET, 1),
            "timesteps": torch.arange(TARGET).expand(2, TARGET),
            "attention_mask": torch.ones(2, TARGET, dtype=torch.int64),
        },
    }[reads]
