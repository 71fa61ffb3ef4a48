"""Branches of Hugging Face models and of timm: names, references, caches, saved models."""

from __future__ import annotations

import inspect

import pytest
import torch

import fxprune
from fxprune.depth.carry_out import replace_modules
from fxprune.depth.dropped import IDENTITY, Replacement
from tests.depth.test_drop import dropped_names, zeroing
from tests.support import randomise, torchvision

torchvision()
transformers = pytest.importorskip("transformers")


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=59, **sizes)
    return randomise(transformers.LlamaForCausalLM(config).eval(), 0, weights=True)


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(num_hidden_layers=2, vocab_size=59, **sizes)
    return randomise(transformers.BertModel(config).eval(), 0)


IDS = torch.arange(7)[None] * 5 % 59


@pytest.mark.parametrize(
    ("make", "drop", "names", "zero"),
    [
        (llama, "model.layers.1", ["model.layers.1.self_attn", "model.layers.1.mlp"], None),
        (llama, "*.mlp", [f"model.layers.{n}.mlp" for n in range(3)], None),
        (bert, "encoder.layer.1.attention", ["encoder.layer.1.attention"], ["encoder.layer.1.attention.output.dense"]),
    ],
)
def test_a_branch_of_a_language_model_goes_whole(make, drop, names, zero):
    model = make()
    small = fxprune.transform(model, IDS, drop=drop)
    assert dropped_names(small) == names
    assert fxprune.verify(model, small, IDS) <= 1e-9
    made = small(IDS)[0]
    wanted = zeroing(make(), names if zero is None else zero)(IDS)[0]
    assert (made - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (made - model(IDS)[0]).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("drop", ["model.layers.0", "model.layers.0.self_attn"])
def test_a_cache_counts_its_tokens_without_the_attention_that_is_gone(drop):
    model = llama()
    small = fxprune.transform(model, IDS, drop=drop)
    cache = transformers.DynamicCache()
    name = "cache" if "cache" in inspect.signature(type(small).forward).parameters else "past_key_values"
    parts = [small(part, use_cache=True, **{name: cache}).logits for part in IDS.split(3, 1)]
    whole = small(IDS, use_cache=False).logits
    assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-4 * whole.abs().max()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]  # the original is as it was


class Numbered(torch.nn.Linear):
    """A layer with a part of a cache."""

    def __init__(self, number, window=None):
        super().__init__(1, 1)
        self.layer_idx, self.sliding_window = number, window


class Stateful(Numbered):
    """The same of another class."""


@pytest.mark.parametrize(
    ("layers", "gone", "numbers"),
    [
        ([Numbered, Numbered, Numbered], [0], [0, 2]),
        ([Numbered, Numbered, Numbered], [0, 1], [0]),
        ([Numbered, Numbered, Numbered], [1, 0], [0]),
        ([Numbered, Numbered, Numbered], [1], [0, 2]),
        ([Stateful, Numbered, Numbered], [0], [1, 2]),
        ([Stateful, Numbered, Stateful], [0], [1, 0]),
        ([Stateful, Numbered, Numbered], [1], [0, 1]),
        ([(4,), (None,), (4,), (None,)], [0], [1, 0, 3]),
        ([(4,), (None,), (4,), (None,)], [1], [0, 2, 1]),
    ],
)
def test_the_first_part_of_a_cache_of_each_kind_is_filled(layers, gone, numbers):
    made = (Numbered(n, *one) if type(one) is tuple else one(n) for n, one in enumerate(layers))
    model = torch.nn.Sequential(torch.nn.ModuleList(made))
    replace_modules(model, [Replacement(f"0.{number}", IDENTITY) for number in gone])
    assert [layer.layer_idx for layer in model[0] if isinstance(layer, Numbered)] == numbers


def test_a_saved_pretrained_model_comes_back(tmp_path):
    small = fxprune.transform(llama(), IDS, drop="model.layers.1")
    small.save_pretrained(tmp_path)
    again = fxprune.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, small(IDS).logits)


def test_a_block_of_a_vision_transformer_becomes_the_identity():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"depth": 2, "img_size": 32, "embed_dim": 24, "num_heads": 2, "init_values": 0.1, "drop_path_rate": 0.1}
    model, x = randomise(timm.create_model("vit_tiny_patch16_224", **options).eval(), 0), torch.randn(2, 3, 32, 32)
    small = fxprune.transform(model, x, drop=["blocks.0.attn", "blocks.1"])
    assert dropped_names(small) == ["blocks.0.attn", "blocks.1.attn", "blocks.1.mlp"]
    assert type(small.blocks[1]) is torch.nn.Identity
    wanted = zeroing(model, ["blocks.0.ls1", "blocks.1.ls1", "blocks.1.ls2"])(x)
    assert (small(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
