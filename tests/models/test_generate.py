"""Small models of `transformers` write the texts of the masked original, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune
from tests.models import measure, zoo

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

FAMILIES = {
    "GPT2LMHeadModel": "one matrix for queries, keys and values; learned positions",
    "GPTNeoXForCausalLM": "rotary positions in a part of the head width",
    "BloomForCausalLM": "a bias for every distance",
    "LlamaForCausalLM": "several heads share their keys",
    "FalconForCausalLM": "all heads share one key",
    "MistralForCausalLM": "a sliding window",
    "Gemma2ForCausalLM": "bounded scores, every other layer with a sliding window",
    "MixtralForCausalLM": "experts",
    "MambaForCausalLM": "a state instead of attention",
    "RecurrentGemmaForCausalLM": "a state in attributes, beside attention",
    "T5ForConditionalGeneration": "an encoder and a decoder with relative positions",
    "BartForConditionalGeneration": "an encoder and a decoder with learned positions",
    "WhisperForConditionalGeneration": "an encoder of sound",
}
"""Class -> what its attention is like."""


STATIC = ("LlamaForCausalLM", "Gemma2ForCausalLM")
"""Classes that also write with a cache of a fixed length."""


def written(model: Any, inputs: dict[str, Any], *, cached: bool, static: bool = False) -> Any:
    """The words that a model appends to its input, the likeliest one at each place, and all scores."""
    given = {k: v[:1] for k, v in inputs.items() if k in ("input_ids", "input_features")}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 1, "use_cache": cached}
    if static:
        options["cache_implementation"] = "static"
    if model.config.is_encoder_decoder:
        options["decoder_start_token_id"] = 2
    with torch.no_grad(), measure.in_double():
        return model.generate(**given, **options, return_dict_in_generate=True, output_logits=True)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FAMILIES, ids=lambda name: f"{name}, {FAMILIES[name]}")
def test_the_small_model_writes_what_the_masked_original_writes(name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = zoo.entries("transformers")[f"transformers/{name}"].build()
    small: Any = fxprune.transform(
        model, inputs, ratio=measure.RATIO, importance="random", seed=measure.SEED, exact=True, prefer="class"
    )
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    reference = fxprune.masked(model, fxprune.record(small).removed)
    kinds = [(False, False), (True, False), (True, True)]
    for cached, static in kinds[: 3 if name in STATIC else 2]:
        ours = written(small, inputs, cached=cached, static=static)
        theirs = written(reference, inputs, cached=cached)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert len(ours.logits) == 4
        for scores, expected in zip(ours.logits, theirs.logits, strict=True):
            assert measure.error_of(scores, expected) < measure.TOLERANCE
