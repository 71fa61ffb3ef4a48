"""Layers that are dropped whole, and the config says so: the small model is loaded by `transformers` alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune import PlanError
from fxprune.depth.numbering import in_original_numbering, name_after, name_before
from tests.configs.models import built, loaded_elsewhere, tensors_of
from tests.models import transformers_zoo as zoo
from tests.support import torchvision

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

FOUR = {"num_hidden_layers": 4}

THREE = {"num_hidden_layers": 3}

FAMILIES: dict[str, tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (THREE, "model.layers.1", {"ratio": 0.5}, {"num_hidden_layers": 2, "intermediate_size": 36}),
    "Qwen2ForCausalLM": (
        {**FOUR, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 3},
        ["model.layers.0", "model.layers.2"],
        {"keep": {"params": 0.4}},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2},
    ),
    "GPT2LMHeadModel": ({"n_layer": 3}, "transformer.h.0", {}, {"n_layer": 2}),
    "Gemma2ForCausalLM": (
        THREE,
        "model.layers.2",
        {},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Qwen3MoeForCausalLM": (
        {**FOUR, "mlp_only_layers": [2]},
        "model.layers.1",
        {},
        {"num_hidden_layers": 3, "mlp_only_layers": [1]},
    ),
    "BertForMaskedLM": (THREE, "bert.encoder.layer.0", {"ratio": 0.5}, {"num_hidden_layers": 2, "hidden_size": 24}),
    "BartForConditionalGeneration": ({}, "model.decoder.layers.1", {}, {"decoder_layers": 2, "encoder_layers": 2}),
    "T5ForConditionalGeneration": (
        {"num_layers": 3},
        ["encoder.block.1", "decoder.block.1"],
        {},
        {"num_layers": 2, "num_decoder_layers": 2},
    ),
}
"""Class -> changes of its config, what is dropped, further options, and fields of the small model's config."""


def deep(name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """A small model with some fields of its config changed, and inputs."""
    config, arguments, reads = zoo.MODELS[name]
    monkeypatch.setitem(zoo.MODELS, name, (config, {**arguments, **changes}, reads))
    return built(name)


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """A Llama of four layers, and inputs."""
    return deep("LlamaForCausalLM", FOUR, monkeypatch)


def check_loaded(names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each small model says its layers in its config, and is the same where `transformers` alone loads it."""
    smalls = {}
    for name in names:
        changes, drop, options, fields = FAMILIES[name]
        model, inputs = deep(name, changes, monkeypatch)
        before = model.config.to_dict()
        small: Any = fxprune.transform(model, inputs, drop=drop, uniform="config", **options)
        assert model.config.to_dict() == before
        assert {field: getattr(small.config, field) for field in fields} == fields
        assert fxprune.verify(model, small, inputs) <= 1e-9
        small.save_pretrained(folder / name)
        smalls[name] = small, inputs
    found = loaded_elsewhere({folder / name: name for name in smalls}, [inputs for _, inputs in smalls.values()])
    for (small, inputs), loaded in zip(smalls.values(), found, strict=True):
        state = small.state_dict()
        assert state.keys() == loaded.state.keys()
        assert all(torch.equal(tensor, loaded.state[key]) for key, tensor in state.items())
        with torch.no_grad():
            for a, b in zip(tensors_of(small(**inputs)), loaded.results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_models_with_fewer_layers_are_loaded_without_fxprune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_loaded(["LlamaForCausalLM", "Gemma2ForCausalLM"], tmp_path, monkeypatch)


@pytest.mark.slow
def test_more_models_with_fewer_layers_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_loaded(
        [name for name in FAMILIES if name not in ("LlamaForCausalLM", "Gemma2ForCausalLM")], tmp_path, monkeypatch
    )


def test_a_plan_gives_the_same_model_again_and_the_record_keeps_the_names_of_the_original(llama: Any) -> None:
    model, inputs = llama
    small = fxprune.transform(model, inputs, drop="model.layers.1", uniform="config", ratio={"*.mlp.gate_proj": 0.5})
    known = fxprune.record(small)
    assert known.layers_gone == {"model.layers": (1,)}
    assert "model.layers.3.mlp.gate_proj.weight" in known.removed
    assert len(small.model.layers) == 3
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]
    again = fxprune.transform(model, inputs, plan=known.plan, uniform="config")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in small.state_dict().items())
    copied = copy.deepcopy(small)
    assert fxprune.record(pickle.loads(pickle.dumps(copied))).layers_gone == known.layers_gone


def test_a_layer_goes_whole_with_the_norms_behind_its_additions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = deep("BertForMaskedLM", FOUR, monkeypatch)
    layers = ["bert.encoder.layer.1", "bert.encoder.layer.2"]
    small = fxprune.transform(model, inputs, drop=layers, uniform="config", ratio={"*.0.intermediate.*": 0.5})
    expected = copy.deepcopy(model)
    del expected.bert.encoder.layer[1:3]
    alone = fxprune.transform(model, inputs, drop=layers, uniform="config")
    with torch.no_grad():
        torch.testing.assert_close(alone(**inputs).logits, expected(**inputs).logits, rtol=1e-5, atol=1e-5)
    known = fxprune.record(small)
    assert "layers went whole" in " ".join(known.reasons)
    assert known.layers_gone == {"bert.encoder.layer": (1, 2)}
    assert fxprune.verify(model, small, inputs) <= 1e-9
    again = fxprune.transform(model, inputs, plan=known.plan, uniform="config")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in small.state_dict().items())
    known.plan.save(tmp_path / "plan.json")
    assert fxprune.Plan.load(tmp_path / "plan.json") == known.plan
    with pytest.raises(fxprune.PlanError, match="it is a whole layer"):
        fxprune.expand(small, model, others="zero")


def test_optimizers_averages_and_repairs_find_the_layers(llama: Any) -> None:
    model, inputs = llama
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(**inputs).logits.square().mean().backward()
    optimizer.step()
    moment = optimizer.state[model.model.layers[3].mlp.up_proj.weight]["exp_avg"].clone()
    average = torch.optim.swa_utils.AveragedModel(model)
    options = {"drop": "model.layers.1", "uniform": "config", "optimizer": optimizer, "ema": average}
    small = fxprune.transform(model, inputs, **options)
    assert torch.equal(optimizer.state[small.model.layers[2].mlp.up_proj.weight]["exp_avg"], moment)
    with torch.no_grad():
        torch.testing.assert_close(average(**inputs).logits, small(**inputs).logits)
    batches = [{"input_ids": torch.randint(0, 90, (8, 7))} for _ in range(3)]
    repaired = fxprune.repair(small, model, batches)
    done = fxprune.record(repaired).repair
    assert done.after < done.before
    assert type(repaired.model.layers) is torch.nn.ModuleList
    assert repaired.state_dict().keys() == small.state_dict().keys()
    assert any("layers.3." in name for name in done.layers)


@pytest.mark.parametrize(
    ("name", "drop", "message"),
    [
        ("LlamaForCausalLM", "model.layers.1.mlp", r'"model.layers.1.mlp" is gone, and the layer around it does more'),
        (
            "BertForMaskedLM",
            "bert.encoder.layer.1.output.dense",
            r"is gone, and the layer around it does more than pass",
        ),
    ],
)
def test_a_part_of_a_layer_is_refused(name: str, drop: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = deep(name, FOUR, monkeypatch)
    with pytest.raises(fxprune.PlanError, match=message):
        fxprune.transform(model, inputs, drop=drop, uniform="config")


def test_layers_that_no_config_says_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse layers are every second one, and after the removal the second one would be the third."""
    model, inputs = deep("Qwen3MoeForCausalLM", {**FOUR, "decoder_sparse_step": 2}, monkeypatch)
    with pytest.raises(
        fxprune.PlanError, match=r'with num_hidden_layers=3 there would be no "model.layers.1.mlp.gate_proj"'
    ):
        fxprune.transform(model, inputs, drop="model.layers.1", uniform="config")


def test_other_numbers_that_equal_the_number_of_layers_stay() -> None:
    model, inputs = built("CLIPModel")
    text = model.config.text_config.to_dict()
    assert text["eos_token_id"] == text["num_hidden_layers"] == model.config.vision_config.num_hidden_layers == 2
    small = fxprune.transform(model, inputs, drop="vision_model.encoder.layers.1", uniform="config")
    assert small.config.text_config.to_dict() == text
    assert small.config.vision_config.num_hidden_layers == 1


def test_lists_of_stages_are_refused_with_a_reason() -> None:
    model, inputs = built("SwinForImageClassification")
    with pytest.raises(PlanError, match="no SwinConfig says the model without"):
        fxprune.transform(model, inputs, drop="swin.encoder.layers.1", uniform="config")


def test_names_before_and_after() -> None:
    gone = {"a.layers": (1, 2)}
    after = ["a.layers.0.w", None, None, "a.layers.1.w", "a.layers.2.w"]
    assert [name_after(f"a.layers.{n}.w", gone) for n in range(5)] == after
    for number, name in enumerate(after):
        assert name is None or name_before(name, gone) == f"a.layers.{number}.w"
    assert name_after("b.layers.1.w", gone) == "b.layers.1.w"
    made = in_original_numbering(torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(1, 1)])), {"0": (0,)})
    assert [path for path, _ in made.named_modules()] == ["", "0", "0.1"]


def test_a_gradual_pruner_refuses_layers_of_a_config(llama: Any) -> None:
    model, inputs = llama
    with pytest.raises(fxprune.PlanError, match='cannot take drop with uniform="config"'):
        fxprune.GradualPruner(model, inputs, steps=2, keep={"params": 0.5}, drop="model.layers.1", uniform="config")


def test_a_class_that_has_other_tensors_without_some_layers_is_refused_with_them() -> None:
    torchvision()  # transformers imports it
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    layers = {"num_hidden_layers": 2, "global_attn_every_n_layers": 2}
    config = transformers.ModernBertConfig(**sizes, **tokens, **layers)
    net, inputs = transformers.ModernBertModel(config).eval(), {"input_ids": torch.randint(3, 40, (2, 7))}
    with pytest.raises(fxprune.PlanError, match="with fewer layers the class is built otherwise"):
        fxprune.transform(net, inputs, drop="layers.1", uniform="config")
