"""Configurations of further families of `transformers`: text, images, sound, and several of these together."""

from __future__ import annotations

from typing import Any

from tests.models.transformers_sizes import (
    CLIP,
    DECODER,
    ENCODER,
    GPT,
    GROUPED,
    IMAGE,
    SEQ2SEQ,
    SIDES,
    SOUND,
    T5,
    VISION,
    WIDER_VISION,
    WINDOWS,
    without,
)

LONG: dict[str, Any] = {**ENCODER, "pad_token_id": 1}
EXPERTS: dict[str, Any] = {
    **DECODER,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 44,
    "experts_implementation": "eager",
}
RESNET: dict[str, Any] = {**SIDES, "embedding_size": 14, "layer_type": "basic"}

ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DebertaForSequenceClassification": (
        "DebertaConfig",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 9},
        "text",
    ),
    "DebertaV2ForTokenClassification": (
        "DebertaV2Config",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 4,
            "max_relative_positions": 9,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        "text",
    ),
    "MPNetForMaskedLM": ("MPNetConfig", LONG, "text"),
    "FNetForMaskedLM": ("FNetConfig", without(ENCODER, "num_attention_heads"), "ids"),
    "RoFormerForMaskedLM": ("RoFormerConfig", {**ENCODER, "embedding_size": 20}, "text"),
    "ConvBertForMaskedLM": ("ConvBertConfig", {**ENCODER, "embedding_size": 20, "head_ratio": 2}, "text"),
    "SqueezeBertForMaskedLM": ("SqueezeBertConfig", {**ENCODER, "embedding_size": 48}, "text"),
    "MobileBertForMaskedLM": (
        "MobileBertConfig",
        {**ENCODER, "embedding_size": 20, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
        "text",
    ),
    "NystromformerForMaskedLM": (
        "NystromformerConfig",
        {**ENCODER, "num_landmarks": 11, "segment_means_seq_len": 11, "conv_kernel_size": 3},
        "text",
    ),
    "XLNetLMHeadModel": (
        "XLNetConfig",
        {"vocab_size": 97, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 72},
        "text",
    ),
    "MegatronBertForMaskedLM": ("MegatronBertConfig", ENCODER, "text"),
    "RemBertForMaskedLM": (
        "RemBertConfig",
        {**ENCODER, "input_embedding_size": 20, "output_embedding_size": 28},
        "text",
    ),
    "XLMRobertaForTokenClassification": ("XLMRobertaConfig", {**LONG, "num_labels": 5}, "text"),
    "ModernBertForMaskedLM": (
        "ModernBertConfig",
        {**ENCODER, "pad_token_id": 0, "local_attention": 6, "attn_implementation": "eager"},
        "text",
    ),
    "EuroBertForMaskedLM": ("EuroBertConfig", {**GROUPED, "pad_token_id": 0}, "text"),
    "EsmForMaskedLM": ("EsmConfig", {**LONG, "mask_token_id": 2, "position_embedding_type": "rotary"}, "text"),
    "LayoutLMForTokenClassification": (
        "LayoutLMConfig",
        {**ENCODER, "num_labels": 5, "max_2d_position_embeddings": 30},
        "boxes",
    ),
    "FunnelForMaskedLM": (
        "FunnelConfig",
        {
            "vocab_size": 97,
            "d_model": 48,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "n_head": 4,
            "d_head": 10,
            "d_inner": 72,
        },
        "text",
    ),
}

DECODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "GPTNeoForCausalLM": (
        "GPTNeoConfig",
        {
            "vocab_size": 97,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 72,
            "max_position_embeddings": 40,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
        },
        "text",
    ),
    "GPTJForCausalLM": ("GPTJConfig", {**GPT, "rotary_dim": 4}, "text"),
    "CodeGenForCausalLM": ("CodeGenConfig", {**GPT, "rotary_dim": 4}, "text"),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", {**GPT, "n_inner": 72}, "text"),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 4}, "text"),
    "FalconForCausalLM": ("FalconConfig", {**without(ENCODER, "intermediate_size"), "ffn_hidden_size": 72}, "text"),
    "MptForCausalLM": (
        "MptConfig",
        {"vocab_size": 97, "d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 40},
        "text",
    ),
    "PhiForCausalLM": ("PhiConfig", {**GROUPED, "pad_token_id": 0}, "text"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**DECODER, "sliding_window": 5, "query_pre_attn_scalar": 10}, "text"),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**DECODER, "sliding_window": 5, "query_pre_attn_scalar": 10}, "text"),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        {**without(EXPERTS, "head_dim"), "shared_expert_intermediate_size": 52},
        "text",
    ),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", EXPERTS, "text"),
    "OlmoeForCausalLM": ("OlmoeConfig", without(EXPERTS, "head_dim", "moe_intermediate_size"), "text"),
    "CohereForCausalLM": ("CohereConfig", {**GROUPED, "pad_token_id": 0}, "text"),
    "StableLmForCausalLM": ("StableLmConfig", GROUPED, "text"),
    "Starcoder2ForCausalLM": ("Starcoder2Config", GROUPED, "text"),
    "Olmo2ForCausalLM": ("Olmo2Config", {**GROUPED, "pad_token_id": 0}, "text"),
    "GraniteForCausalLM": (
        "GraniteConfig",
        {**GROUPED, "attention_multiplier": 0.3, "residual_multiplier": 0.7},
        "text",
    ),
    "GlmForCausalLM": ("GlmConfig", {**DECODER, "pad_token_id": 0}, "text"),
    "NemotronForCausalLM": ("NemotronConfig", DECODER, "text"),
    "PersimmonForCausalLM": ("PersimmonConfig", ENCODER, "text"),
    "BioGptForCausalLM": ("BioGptConfig", LONG, "text"),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {**GROUPED, "pad_token_id": 0}, "text"),
    "ArceeForCausalLM": ("ArceeConfig", DECODER, "text"),
    "OpenAIGPTLMHeadModel": ("OpenAIGPTConfig", GPT, "text"),
    "DeepseekV3ForCausalLM": (
        "DeepseekV3Config",
        {
            **ENCODER,
            "num_key_value_heads": 4,
            "q_lora_rank": 22,
            "kv_lora_rank": 18,
            "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 6,
            "v_head_dim": 14,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 26,
            "experts_implementation": "eager",
        },
        "text",
    ),
    "Mamba2ForCausalLM": (
        "Mamba2Config",
        {
            "vocab_size": 97,
            "hidden_size": 48,
            "state_size": 10,
            "num_hidden_layers": 2,
            "num_heads": 6,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 4,
        },
        "text",
    ),
    "FalconMambaForCausalLM": (
        "FalconMambaConfig",
        {"vocab_size": 97, "hidden_size": 48, "state_size": 10, "num_hidden_layers": 2, "time_step_rank": 5},
        "text",
    ),
    "RwkvForCausalLM": (
        "RwkvConfig",
        {
            "vocab_size": 97,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
        },
        "text",
    ),
    "JambaForCausalLM": (
        "JambaConfig",
        {
            **GROUPED,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "mamba_d_state": 10,
            "mamba_dt_rank": 5,
            "use_mamba_kernels": False,
            "experts_implementation": "eager",
        },
        "text",
    ),
    "RecurrentGemmaForCausalLM": (
        "RecurrentGemmaConfig",
        {**GROUPED, "lru_width": 54, "attention_window_size": 5, "num_hidden_layers": 3},
        "text",
    ),
    "GptOssForCausalLM": (
        "GptOssConfig",
        {
            **DECODER,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "experts_implementation": "eager",
        },
        "text",
    ),
}

SEQUENCES: dict[str, tuple[str, dict[str, Any], str]] = {
    "MBartForConditionalGeneration": ("MBartConfig", {**SEQ2SEQ, "max_position_embeddings": 40}, "text to text"),
    "PegasusForConditionalGeneration": ("PegasusConfig", {**SEQ2SEQ, "max_position_embeddings": 40}, "text to text"),
    "MarianMTModel": ("MarianConfig", {**SEQ2SEQ, "max_position_embeddings": 40}, "text to text"),
    "BlenderbotForConditionalGeneration": (
        "BlenderbotConfig",
        {**SEQ2SEQ, "max_position_embeddings": 40},
        "text to text",
    ),
    "M2M100ForConditionalGeneration": ("M2M100Config", {**SEQ2SEQ, "max_position_embeddings": 40}, "text to text"),
    "UMT5ForConditionalGeneration": (
        "UMT5Config",
        {
            **T5,
            "num_layers": 2,
        },
        "text to text",
    ),
    "LongT5ForConditionalGeneration": (
        "LongT5Config",
        {
            **T5,
            "num_layers": 2,
            "local_radius": 4,
        },
        "text to text",
    ),
    "ProphetNetForConditionalGeneration": (
        "ProphetNetConfig",
        {
            "vocab_size": 97,
            "hidden_size": 48,
            "encoder_ffn_dim": 72,
            "decoder_ffn_dim": 60,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 6,
            "max_position_embeddings": 40,
        },
        "text to text, mask of fractions",  # 1 - mask of integers is float32, and the least number of float64 is not
    ),
}

IMAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "BeitForImageClassification": (
        "BeitConfig",
        {**VISION, "num_labels": 5, "use_relative_position_bias": True},
        "image",
    ),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", {**VISION, "num_labels": 5}, "image"),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {**VISION, "num_labels": 5}, "image"),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {**without(VISION, "intermediate_size"), "mlp_ratio": 2, "num_labels": 5},
        "image",
    ),
    "DINOv3ViTModel": (  # 40 in each head: 10 frequencies in 2 directions, sine and cosine
        "DINOv3ViTConfig",
        {**VISION, "hidden_size": 80, "num_attention_heads": 2, "num_register_tokens": 2},
        "image",
    ),
    "DPTForDepthEstimation": (
        "DPTConfig",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [14, 18, 22, 26],
            "fusion_hidden_size": 30,
        },
        "image",
    ),
    "YolosForObjectDetection": (
        "YolosConfig",
        {**VISION, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 7, "num_labels": 5},
        "image",
    ),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", SIDES, "image"),
    "Swinv2ForImageClassification": (
        "Swinv2Config",
        WINDOWS,
        "image",
    ),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.35, "num_labels": 5}, "image"),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 12, 16, 20, 28, 36, 44],
            "image_size": 64,
            "num_labels": 5,
        },
        "large image",
    ),
    "PoolFormerForImageClassification": ("PoolFormerConfig", SIDES, "image"),
    "PvtV2ForImageClassification": (
        "PvtV2Config",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 36, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "mlp_ratios": [3, 3, 2, 2],
            "num_labels": 5,
        },
        "large image",
    ),
    "ResNetForImageClassification": ("ResNetConfig", RESNET, "image"),
    "RegNetForImageClassification": ("RegNetConfig", {**SIDES, "embedding_size": 14, "groups_width": 4}, "image"),
    "BitForImageClassification": (
        "BitConfig",
        {
            "embedding_size": 14,
            "hidden_sizes": [24, 32, 40, 48],
            "depths": [1, 1, 1, 1],
            "num_groups": 2,
            "num_labels": 5,
        },
        "image",
    ),
    "FocalNetForImageClassification": (
        "FocalNetConfig",
        {
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "focal_levels": [2, 2, 2],
            "focal_windows": [3, 3, 3],
            "num_labels": 5,
        },
        "large image",
    ),
    "LevitForImageClassification": (
        "LevitConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [16, 16, 16],
            "num_labels": 5,
        },
        "large image",
    ),
    "GLPNForDepthEstimation": (
        "GLPNConfig",
        {
            "hidden_sizes": [16, 24, 36, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "mlp_ratios": [3, 3, 2, 2],
            "decoder_hidden_size": 20,
        },
        "large image",
    ),
    "DetrForObjectDetection": (
        "DetrConfig",
        {
            **without(SEQ2SEQ, "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
            "backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage4"]},
            "use_timm_backbone": False,
            "num_queries": 7,
            "num_labels": 5,
        },
        "large image",
    ),
    "MaskFormerForInstanceSegmentation": (
        "MaskFormerConfig",
        {
            "fpn_feature_size": 64,
            "mask_feature_size": 32,
            "backbone_config": {
                "model_type": "resnet",
                **RESNET,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "decoder_config": {
                "model_type": "detr",
                "d_model": 28,
                "encoder_layers": 1,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 50,
                "decoder_ffn_dim": 60,
                "num_queries": 7,
                "backbone_config": {"model_type": "resnet"},
            },
            "num_labels": 5,
        },
        "large image",
    ),
    "UperNetForSemanticSegmentation": (
        "UperNetConfig",
        {
            "backbone_config": {
                "model_type": "convnext",
                **SIDES,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 26,
            "auxiliary_in_channels": 36,
            "auxiliary_channels": 30,
            "num_labels": 5,
        },
        "large image",
    ),
    "VideoMAEForVideoClassification": (
        "VideoMAEConfig",
        {**VISION, "num_frames": 4, "tubelet_size": 2, "num_labels": 5},
        "video",
    ),
    "TimesformerForVideoClassification": ("TimesformerConfig", {**VISION, "num_frames": 4, "num_labels": 5}, "video"),
}

SOUNDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "HubertForCTC": ("HubertConfig", SOUND, "sound"),
    "WavLMForCTC": ("WavLMConfig", {**SOUND, "num_buckets": 8, "max_bucket_distance": 20}, "sound"),
    "UniSpeechForCTC": ("UniSpeechConfig", SOUND, "sound"),
    "SEWForCTC": ("SEWConfig", {**SOUND, "squeeze_factor": 2}, "sound"),
    "Data2VecAudioForCTC": (
        "Data2VecAudioConfig",
        {**without(SOUND, "num_conv_pos_embeddings"), "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
        "sound",
    ),
    "Wav2Vec2ConformerForCTC": ("Wav2Vec2ConformerConfig", {**SOUND, "conv_depthwise_kernel_size": 3}, "sound"),
    "ASTForAudioClassification": (
        "ASTConfig",
        {
            **without(VISION, "image_size", "patch_size"),
            "patch_size": 6,
            "max_length": 24,
            "num_mel_bins": 14,
            "num_labels": 5,
        },
        "frames",
    ),
    "Speech2TextForConditionalGeneration": (
        "Speech2TextConfig",
        {
            **SEQ2SEQ,
            "input_feat_per_channel": 14,
            "input_channels": 1,
            "conv_channels": 30,
            "max_source_positions": 40,
            "max_target_positions": 40,
        },
        "frames to text",
    ),
    "MoonshineForConditionalGeneration": (
        "MoonshineConfig",
        {
            "vocab_size": 97,
            "hidden_size": 48,
            "intermediate_size": 72,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "max_position_embeddings": 40,
        },
        "sound to text",
    ),
}

SEVERAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "SiglipModel": (
        "SiglipConfig",
        {
            "text_config": {**ENCODER, "projection_size": 48},
            "vision_config": {**VISION, "num_attention_heads": 6, "intermediate_size": 84},
        },
        "text and image",
    ),
    "BlipForImageTextRetrieval": (
        "BlipConfig",
        {
            "text_config": {**ENCODER, "encoder_hidden_size": 60},
            "vision_config": WIDER_VISION,
            "projection_dim": 28,
            "image_text_hidden_size": 20,
        },
        "text and image",
    ),
    "CLIPSegForImageSegmentation": (
        "CLIPSegConfig",
        {
            **CLIP,
            "reduce_dim": 20,
            "extract_layers": [0, 1],
            "decoder_intermediate_size": 34,
        },
        "text and image",
    ),
    "ChineseCLIPModel": (
        "ChineseCLIPConfig",
        {
            "text_config": ENCODER,
            "vision_config": WIDER_VISION,
            "projection_dim": 28,
        },
        "text and image",
    ),
    "ViltModel": ("ViltConfig", {**VISION, **ENCODER}, "text and image"),
    "GitForCausalLM": (
        "GitConfig",
        {
            **ENCODER,
            "vision_config": WIDER_VISION,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        "text and image",
    ),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **DECODER},
            "vision_config": {"model_type": "clip_vision_model", **VISION, "hidden_size": 60, "num_attention_heads": 5},
            "image_token_id": 96,
            "vision_feature_layer": -1,
        },
        "text with images",
    ),
    "OwlViTModel": (
        "OwlViTConfig",
        CLIP,
        "text and image",
    ),
    "VisualBertModel": ("VisualBertConfig", {**ENCODER, "visual_embedding_dim": 20}, "text and features"),
    "DecisionTransformerModel": (
        "DecisionTransformerConfig",
        {
            "state_dim": 9,
            "act_dim": 4,
            "hidden_size": 48,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 60,
            "max_ep_len": 30,
        },
        "trajectory",
    ),
    "PatchTSTForPrediction": (
        "PatchTSTConfig",
        {
            "num_input_channels": 3,
            "context_length": 24,
            "patch_length": 6,
            "patch_stride": 6,
            "d_model": 48,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "ffn_dim": 72,
            "prediction_length": 5,
        },
        "series",
    ),
}

MORE = {**ENCODERS, **DECODERS, **SEQUENCES, **IMAGES, **SOUNDS, **SEVERAL}
