"""Small models of `transformers` write the texts of the masked original, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune
from tests.models import measure, zoo

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


def written(model: Any, inputs: dict[str, Any], *, cached: bool) -> torch.Tensor:
    """The numbers of the words that a model appends to its input, the likeliest one at each place."""
    text = {k: v[:1] for k, v in inputs.items() if k == "input_ids"}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 1, "use_cache": cached}
    with torch.no_grad(), measure.in_double():
        return torch.as_tensor(model.generate(**text, **options))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_the_small_model_writes_what_the_masked_original_writes(name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = zoo.entries("transformers")[f"transformers/{name}"].build()
    small: Any = fxprune.transform(
        model, inputs, ratio=measure.RATIO, importance="random", seed=measure.SEED, exact=True, prefer="class"
    )
    assert type(small) is type(model)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    for cached in (False, True):
        assert torch.equal(written(small, inputs, cached=cached), written(reference, inputs, cached=cached))
