"""Language models with attention of other kinds: latent, with complex rotary embedding, eager, linear."""

from __future__ import annotations

from typing import Any

import pytest

import fxprune
from tests.configs.models import decoder

pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # warnings of other packages

LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "num_experts": 0,
}


def smaller(model: Any, inputs: Any, fields: dict[str, Any], **request: Any) -> Any:
    """The small model, proven, whose config has these fields."""
    small = fxprune.transform(model, inputs, uniform="config", **request)
    assert {name: getattr(small.config, name) for name in fields} == fields
    assert fxprune.verify(model, small, inputs) <= 1e-9
    return small


def test_a_factor_goes_through_a_complex_rotary_embedding() -> None:
    model, inputs = decoder("DeepseekV2", **LATENT)
    fields = {"qk_nope_head_dim": 4, "num_attention_heads": 2, "kv_lora_rank": 8, "v_head_dim": 3}
    small = smaller(model, inputs, fields, ratio=0.5)
    assert [one.tensor for one in fxprune.record(small).plan.factors] == ["model.layers.0.self_attn.q_b_proj.weight"]


@pytest.mark.parametrize(
    ("family", "sizes"), [("Gemma2", {"query_pre_attn_scalar": 8}), ("GptOss", {"num_local_experts": 2})]
)
def test_one_of_two_key_value_heads_stays_where_attention_is_eager(family: str, sizes: dict[str, Any]) -> None:
    """With one of them `reshape` makes a view of the repeated heads, with two a copy."""
    model, inputs = decoder(family, num_experts_per_tok=2, sliding_window=5, **sizes)
    smaller(model, inputs, {"num_attention_heads": 2, "num_key_value_heads": 1}, ratio={"*.k_proj": 0.5})


def test_heads_of_linear_attention_go() -> None:
    model, inputs = decoder(
        "Qwen3Next", layer_types=["linear_attention", "full_attention"], num_hidden_layers=2, **LINEAR
    )
    fields = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 6}
    smaller(model, inputs, fields, ratio={"*.linear_attn.in_proj_ba": 0.5})


def test_a_first_layer_of_linear_attention_goes() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    model, inputs = decoder("Qwen3Next", layer_types=kinds, num_hidden_layers=3, **LINEAR)
    small = fxprune.transform(model, inputs, drop="model.layers.0")
    assert small.model.layers[1].self_attn.layer_idx == 1
    assert small.model.layers[2].linear_attn.layer_idx == 0
    counted = smaller(model, inputs, {"layer_types": kinds[1:], "num_hidden_layers": 2}, drop="model.layers.0")
    assert counted.model.layers[0].self_attn.layer_idx == 0
