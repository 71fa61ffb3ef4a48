"""Sizes that the configurations of `tests.models.transformers_zoo` share; they differ from each other."""

from __future__ import annotations

from typing import Any

LENGTH, TARGET, IMAGE = 11, 7, 48

# hidden 48 in 4 heads of 12, or 60 in 5
ENCODER: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 40,
}
DECODER: dict[str, Any] = {**ENCODER, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
GROUPED: dict[str, Any] = {**ENCODER, "num_attention_heads": 6, "num_key_value_heads": 2}  # width 8 per head
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "image_size": IMAGE,
    "patch_size": 16,
}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 72,
    "decoder_ffn_dim": 60,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
SOUND: dict[str, Any] = {
    **{k: v for k, v in ENCODER.items() if k != "max_position_embeddings"},
    "conv_dim": (20, 28, 36),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    """These sizes but for some."""
    return {name: size for name, size in sizes.items() if name not in names}
