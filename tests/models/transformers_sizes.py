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
GPT: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}
T5: dict[str, Any] = {"vocab_size": 97, "d_model": 48, "d_kv": 10, "num_heads": 5, "d_ff": 72, "num_decoder_layers": 3}
SIDES: dict[str, Any] = {"hidden_sizes": [20, 28, 36, 44], "depths": [1, 1, 2, 1], "num_labels": 5}
WINDOWS: dict[str, Any] = {
    "image_size": IMAGE,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "mlp_ratio": 1.5,
    "num_labels": 5,
}
WIDER_VISION: dict[str, Any] = {**VISION, "hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 84}
CLIP: dict[str, Any] = {
    "text_config": {**ENCODER, "bos_token_id": 0, "eos_token_id": 2},
    "vision_config": WIDER_VISION,
    "projection_dim": 28,
}


def without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    """These sizes but for some."""
    return {name: size for name, size in sizes.items() if name not in names}
