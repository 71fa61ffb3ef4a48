"""A small model that its config says is saved and loaded by `transformers` alone, and is the same model there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from tests.configs.models import Loaded, built, decoder, loaded_elsewhere, tensors_of
from tests.models.measure import TOLERANCE, error_of, in_double

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "LlamaForCausalLM": (
        "AutoModelForCausalLM",
        {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "BertForMaskedLM": ("BertForMaskedLM", {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 2}),
    "GPT2LMHeadModel": ("AutoModelForCausalLM", {"n_embd": 24, "n_inner": 36, "n_head": 2}),
    "MambaForCausalLM": ("AutoModelForCausalLM", {"hidden_size": 24, "state_size": 5, "intermediate_size": 48}),
}
"""Class -> the class that loads it, and its config after half of all widths has gone."""


@pytest.fixture(scope="module")
def smalls() -> dict[str, Any]:
    """Class -> a model, a smaller one of which half of every width that its config says has gone, and inputs."""
    made = {}
    for name in FAMILIES:
        model, inputs = built(name)
        before = model.config.to_dict()
        made[name] = model, fxprune.transform(model, inputs, ratio=0.5, uniform="config"), inputs
        assert model.config.to_dict() == before
        assert "__getattr__" not in vars(type(model.config))
    return made


@pytest.fixture(scope="module")
def loaded(smalls: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """Class -> the small model as it was loaded."""
    folders, given = dict[Path, str](), []
    for name, (_, small, inputs) in smalls.items():
        folder = tmp_path_factory.mktemp(name)
        small.save_pretrained(folder)
        folders[folder] = FAMILIES[name][0]
        given.append(inputs)
    return dict(zip(smalls, loaded_elsewhere(folders, given), strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_saved_model_is_loaded_without_fxprune_and_is_the_same(name: str, smalls: Any, loaded: Any) -> None:
    model, small, inputs = smalls[name]
    assert type(small) is type(model)
    assert {field: getattr(small.config, field) for field in FAMILIES[name][1]} == FAMILIES[name][1]
    with torch.no_grad():
        own = tensors_of(small(**inputs))
    state = small.state_dict()
    assert state.keys() == loaded[name].state.keys()
    assert all(torch.equal(tensor, loaded[name].state[key]) for key, tensor in state.items())
    for a, b in zip(own, loaded[name].results, strict=True):  # other processes may add in another order
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_all_layers_keep_the_same_share_and_the_result_equals_the_masked_original() -> None:
    model, inputs = built("LlamaForCausalLM")
    small = fxprune.transform(model, inputs, counts={"model.layers.0.mlp.gate_proj": 40}, uniform="config")
    assert [layer.mlp.down_proj.in_features for layer in small.model.layers] == [40, 40]
    assert (small.config.intermediate_size, model.config.intermediate_size) == (40, 72)
    assert small.model.layers[0].self_attn.config is small.config
    reference = fxprune.masked(model, fxprune.record(small).removed).double()
    with torch.no_grad(), in_double():
        assert error_of(small.double()(**inputs), reference(**inputs)) < TOLERANCE


def test_what_no_config_says_stays_and_a_reason_says_why(smalls: Any) -> None:
    model, small, _ = smalls["LlamaForCausalLM"]
    assert small.config.head_dim == model.config.head_dim  # other rotary frequencies would be computed
    reasons = [r for r in fxprune.record(small).reasons if "head width" in r]
    assert reasons
    assert all("keeps all head width: head_dim counts them" in r for r in reasons)


def test_a_reason_is_that_of_the_number_that_counts_the_group_and_says_what_goes_beside_it() -> None:
    model, inputs = decoder("Gemma2", query_pre_attn_scalar=8)
    reasons = fxprune.analyze(model, inputs).plan(ratio=0.5, uniform="config").reasons
    by_width = [reason for reason in reasons if "keeps all head width" in reason]
    assert by_width
    assert all(": head_dim counts them" in reason for reason in by_width)  # hidden_size changes other dimensions
    (heads,) = (reason for reason in reasons if "keeps all heads" in reason)
    assert 'of group "model.layers.0.self_attn.q_proj:heads@' in heads
    assert "others go with num_attention_heads and num_key_value_heads: num_attention_heads counts them" in heads
    assert "the comparison by == in model.layers.0.self_attn" in heads  # repeat_kv returns early for 1


def test_a_misspelt_config_is_answered_with_the_right_word() -> None:
    model, inputs = built("LlamaForCausalLM")
    with pytest.raises(fxprune.PlanError, match=r'did you mean "config"'):
        fxprune.analyze(model, inputs).plan(ratio=0.5, uniform="config"[:5])


def test_a_budget_is_met_with_widths_that_the_config_accepts() -> None:
    model, inputs = built("LlamaForCausalLM")
    small = fxprune.transform(model, inputs, keep={"params": 0.6}, uniform="config")
    before, after = fxprune.record(small).cost or ()
    assert 0.5 < after.params / before.params <= 0.6
    assert small.config.hidden_size % small.config.num_attention_heads == 0  # or no `LlamaConfig` is made


def test_a_plan_is_carried_out_where_the_config_says_it_and_refused_where_not() -> None:
    model, inputs = built("LlamaForCausalLM")
    analysis = fxprune.analyze(model, inputs)
    plan = analysis.plan(counts={"model.layers.*.mlp.gate_proj": 30})
    small = fxprune.transform(model, inputs, plan=plan, uniform="config")
    assert small.config.intermediate_size == 30
    plan = analysis.plan(counts={"model.layers.0.mlp.gate_proj": 30})
    with pytest.raises(fxprune.RewriteError, match=r"30 of 72 channels .* and 72 of 72 channels"):
        fxprune.transform(model, inputs, plan=plan, uniform="config")


def test_a_model_without_a_config_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    with pytest.raises(fxprune.PlanError, match="Sequential has no config that could say its widths"):
        fxprune.transform(net, torch.randn(1, 4), ratio=0.5, uniform="config")


def test_a_model_that_is_not_what_its_config_says_is_refused() -> None:
    model, inputs = built("LlamaForCausalLM")
    model.model.rotary_emb.inv_freq.mul_(2)
    with pytest.raises(fxprune.PlanError, match=r"inv_freq\" has other numbers than the class computes"):
        fxprune.transform(model, inputs, ratio=0.5, uniform="config")


def test_a_graph_is_refused(smalls: Any) -> None:
    model, _, inputs = smalls["BertForMaskedLM"]
    with pytest.raises(fxprune.PlanError, match="needs a result of the model's class"):
        fxprune.transform(model, inputs, ratio=0.5, uniform="config", path="fx")
