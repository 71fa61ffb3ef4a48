"""Low-rank adapters of peft: prune, heal, merge, save."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

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
