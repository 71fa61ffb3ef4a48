"""Plans of models with many layers: the arrays over all channels do not become more with the layers."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

import fxprune
from fxprune.channels.groups import Solution
from fxprune.configs.builder import built_from
from tests.support import torchvision

torchvision()
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


def llama(layers: int, device: str = "meta") -> Any:
    """A Llama on a device."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device(device):
        config = transformers.LlamaConfig(num_hidden_layers=layers, vocab_size=59, **sizes)
        return transformers.LlamaForCausalLM(config).eval()


def ids(device: str) -> dict[str, torch.Tensor]:
    """Inputs on a device."""
    return {"input_ids": torch.zeros(1, 8, dtype=torch.int64, device=device)}


def flags_made(layers: int) -> int:
    """The number of times that flags of all channels are made for a plan without a budget."""
    analysis = fxprune.analyze(llama(layers), ids("meta"))
    with mock.patch.object(Solution, "no_channel", autospec=True, side_effect=Solution.no_channel) as made:
        analysis.plan(ratio=0.4, importance="random", seed=0)
    return made.call_count


def test_flags_of_all_channels_are_as_many_for_more_layers() -> None:
    assert flags_made(6) == flags_made(2)


@pytest.mark.parametrize("inputs_on", ["cpu", "meta"])
def test_weights_on_meta_may_stand_beside_buffers_with_values(inputs_on: str) -> None:
    model = built_from(transformers.LlamaForCausalLM, llama(2, "cpu").config.to_dict())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta", "cpu"}
    options = {"keep": {"params": 0.6}, "importance": "random", "seed": 0}
    small = fxprune.transform(model, ids(inputs_on), **options)
    whole = fxprune.transform(llama(2), ids("meta"), **options)
    assert fxprune.record(small).plan.removed == fxprune.record(whole).plan.removed
    assert {*small.model.rotary_emb.inv_freq.tolist()} <= {*model.model.rotary_emb.inv_freq.tolist()}
