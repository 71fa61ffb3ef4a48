"""Checkpoints that are streamed without some layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune
from tests.streaming.checkpoints import library, loaded, model_of, pruned, same_bits, saved, tokens

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("family", "layers", "drop", "how"),
    [
        ("Llama", {"num_hidden_layers": 4}, ["model.layers.1", "model.layers.2"], {"uniform": "config"}),
        ("Mixtral", {"num_hidden_layers": 3}, ["model.layers.0"], {"uniform": "config", "ratio": 0.3}),
        ("GPT2", {"n_layer": 3}, ["transformer.h.1"], {"uniform": "config", "ratio": 0.3}),
        ("Llama", {"num_hidden_layers": 3}, ["model.layers.1"], {"ratio": 0.3}),
    ],
    ids=["layers alone", "experts", "gpt2", "any widths"],
)
def test_the_result_is_that_of_the_model_in_memory(
    family: str, layers: Any, drop: list[str], how: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(model_of(family, **layers), tmp_path / "large")
    small, plan = pruned(model, drop=drop, **how)
    done = fxprune.stream(tmp_path / "large", plan, tmp_path / "small", shard_size=8000, progress=False)
    assert done.config_says_it == ("uniform" in how)
    again = loaded(type(model), tmp_path / "small", config_says_it=done.config_says_it)
    assert same_bits(small, again)
    inputs = tokens()
    with torch.no_grad():
        assert torch.equal(small(**inputs).logits, again(**inputs).logits)
    index = json.loads(next((tmp_path / "small").glob("*.index.json")).read_text())["weight_map"]
    numbers = {int(word) for name in index for word in name.split(".") if word.isdigit() and "experts" not in name}
    count = again.config.num_hidden_layers
    assert numbers == set(range(count)) if done.config_says_it else numbers == {0, 2}


def test_layers_of_a_checkpoint_without_the_prefix_are_counted_from_0(tmp_path: Path) -> None:
    model = saved(model_of("Llama", num_hidden_layers=3, tie_word_embeddings=True), tmp_path / "large", "1MB")
    path = tmp_path / "large" / "model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(path).items()}, path, {"format": "pt"})
    small, plan = pruned(model, drop=["model.layers.1"], uniform="config")
    assert fxprune.stream(tmp_path / "large", plan, tmp_path / "small", progress=False).config_says_it
    names = load_file(tmp_path / "small" / "model.safetensors").keys()
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0", "1"}
    assert same_bits(small, type(model).from_pretrained(tmp_path / "small").eval())


def test_options_may_drop_layers(tmp_path: Path) -> None:
    saved(model_of("Llama", num_hidden_layers=3), tmp_path / "large")
    options = {"drop": ["model.layers.0"], "ratio": 0.3, "uniform": "config"}
    assert fxprune.stream(tmp_path / "large", options, tmp_path / "small", progress=False).config_says_it
    made = library().AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert made.config.num_hidden_layers == len(made.model.layers) == 2
