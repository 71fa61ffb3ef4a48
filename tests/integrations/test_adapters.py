"""Low-rank adapters of peft: prune, heal, merge, save."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import fxprune
from tests.support import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft asks transformers
IDS = {"input_ids": torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))}


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).double().eval()


def adapted(model: nn.Module) -> PeftModel:
    torch.manual_seed(0)
    made = get_peft_model(model, LoraConfig(r=4, target_modules=["query", "value", "intermediate.dense"]))
    return made.double().eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS).logits


def heal(model: PeftModel) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(**IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()


def test_a_small_model_is_healed_merged_and_saved(tmp_path: Path) -> None:
    small = fxprune.transform(bert(), IDS, ratio={"*intermediate*": 0.5})
    model = adapted(small)
    heal(model)
    healed = logits(model)
    merged = model.merge_and_unload()
    assert type(merged) is BertForSequenceClassification
    assert relative_error(logits(merged), healed) < 1e-12
    assert relative_error(healed, logits(fxprune.transform(bert(), IDS, ratio={"*intermediate*": 0.5}))) > 1e-6
    fxprune.save(merged, tmp_path / "merged.safetensors")
    again = fxprune.load(tmp_path / "merged.safetensors", into=bert())
    assert torch.equal(logits(again), logits(merged))


@pytest.mark.parametrize("ratio", [0.3, {"*intermediate.dense": 0.5}])
def test_an_adapted_model_is_pruned_with_its_adapters(ratio: Any) -> None:
    model = adapted(bert())
    heal(model)
    small = fxprune.transform(model, IDS, ratio=ratio)
    assert isinstance(small, PeftModel)
    assert fxprune.record(small).error < 1e-9
    weight = "base_model.model.bert.encoder.layer.0.intermediate.dense.base_layer.weight"
    assert fxprune.record(small).after[weight][0] < 64
    expected = logits(small)
    merged = copy.deepcopy(small).merge_and_unload()
    assert type(merged) is BertForSequenceClassification
    assert relative_error(logits(merged), expected) < 1e-12
    heal(small)
    assert relative_error(logits(small), expected) > 1e-6


def test_pruning_and_merging_can_change_places() -> None:
    model = adapted(bert())
    heal(model)
    small = fxprune.transform(model, IDS, ratio={"*intermediate.dense.base_layer": 0.5})
    removed = fxprune.record(small).removed
    channels = removed["base_model.model.bert.encoder.layer.0.intermediate.dense.base_layer.weight"][0]
    merged = copy.deepcopy(model).merge_and_unload()
    masks = {}
    for number in range(2):
        name = f"base_model.model.bert.encoder.layer.{number}.intermediate.dense.base_layer.weight"
        mask = torch.ones(64, dtype=torch.bool)
        mask[removed[name][0]] = False
        masks[f"bert.encoder.layer.{number}.intermediate.dense"] = mask
    other = fxprune.transform(merged, IDS, masks=masks)
    assert len(channels) == 32
    assert relative_error(logits(other), logits(copy.deepcopy(small).merge_and_unload())) < 1e-12


def adapted_twice() -> PeftModel:
    model = adapted(bert())
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query", "intermediate.dense"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.double().eval()


def test_all_active_adapters_lose_the_same_channels() -> None:
    model = adapted_twice()
    model.base_model.set_adapter(["default", "second"])
    small = fxprune.transform(model, IDS, ratio={"*intermediate.dense.base_layer": 0.5})
    masked = fxprune.masked(model, fxprune.record(small).removed)
    for chosen in (["default", "second"], "second", "default"):
        small.base_model.set_adapter(chosen)
        masked.base_model.set_adapter(chosen)
        assert relative_error(logits(small), logits(masked)) < 1e-12
    with small.disable_adapter(), masked.disable_adapter():
        assert relative_error(logits(small), logits(masked)) < 1e-12


@pytest.mark.parametrize(("name", "merge", "layers"), [("second", False, 4), ("default", True, 6)])
def test_an_adapter_that_forward_does_not_use_is_named(name: str, merge: bool, layers: int) -> None:
    model = adapted_twice()
    if merge:
        model.delete_adapter("second")
        model.merge_adapter()
    with pytest.warns(fxprune.AdapterLeftWarning, match=f'the adapter "{name}" keeps its widths in {layers} layers'):
        fxprune.transform(model, IDS, ratio=0.3)


def test_layers_with_weight_decomposition_are_pruned_with_their_magnitudes() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["query", "value", "intermediate.dense"], use_dora=True)
    model = get_peft_model(bert(), config).double()
    heal(model)
    small = fxprune.transform(model.eval(), IDS, ratio={"*intermediate.dense.base_layer": 0.5})
    assert isinstance(small, PeftModel)
    assert fxprune.record(small).error < 1e-9
    layer = small.base_model.model.bert.encoder.layer[0].intermediate.dense
    assert layer.base_layer.out_features == len(layer.lora_magnitude_vector["default"].weight) == 32
    expected = logits(small)
    assert relative_error(logits(copy.deepcopy(small).merge_and_unload()), expected) < 1e-12
    heal(small)
    assert relative_error(logits(small.eval()), expected) > 1e-6


def test_the_block_of_the_page_about_adapters_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it with a model whose layers have the names in it, some inputs, and batches for the repair."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    block = next(match[1] for match in re.finditer(r"^```py\n(.*?)^```$", page, re.M | re.S) if "peft." in match[1])
    batches = [{"input_ids": torch.randint(50, (8, 6))} for _ in range(12)]
    names: dict[str, Any] = {"fxprune": fxprune, "peft": peft, "model": bert(), "inputs": IDS, "batches": batches}
    monkeypatch.chdir(tmp_path)
    exec(block.replace("...  # train", "heal(adapted.double())  # train"), {**globals(), **names}, names)
    loaded = fxprune.load("small.safetensors", into=bert())
    assert torch.equal(logits(loaded), logits(names["merged"]))
    assert fxprune.cost(loaded, IDS).params < 0.7 * fxprune.cost(bert(), IDS).params


def test_the_widths_of_adapted_layers_are_right_and_the_record_is_short() -> None:
    small = fxprune.transform(adapted(bert()), IDS, ratio=0.3)
    for module in small.modules():
        if hasattr(module, "base_layer"):
            layer = module.base_layer
            assert (module.in_features, module.out_features) == (layer.in_features, layer.out_features)
    assert not any("_features" in reason for reason in fxprune.record(small).reasons)


def test_a_merged_model_says_what_to_save() -> None:
    small = fxprune.transform(adapted(bert()), IDS, ratio=0.3)
    with pytest.raises(
        fxprune.FxpruneError, match=r"as a whole: a module in it, such as what merge_and_unload\(\) .* none"
    ):
        fxprune.save(small.merge_and_unload(), "merged.safetensors")
