"""Whole experts of mixtures: what the router chooses and what each expert adds, against a computation by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fxprune
from fxprune import PlanError
from fxprune.criteria import expert_frequency_importance, reap_importance
from tests.configs.models import loaded_elsewhere, tensors_of
from tests.support import torchvision

torchvision()
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

EXPERTS = "model.layers.0.mlp.experts"


def mixture(kind: str = "Mixtral", layers: int = 1, **sizes: int) -> Any:
    """A small mixture of eight experts, of which each token gets two."""
    base = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    base |= {"num_key_value_heads": 2, "vocab_size": 96, "head_dim": 8, "num_experts_per_tok": 2, **sizes}
    torch.manual_seed(1)
    made = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**base)).eval()
    for name, parameter in made.named_parameters():
        if "gate.weight" in name:
            parameter.data.mul_(60)  # else all experts are chosen alike
    return made


@pytest.fixture
def mixtral() -> Any:
    """A Mixtral of one layer."""
    return mixture(num_local_experts=8)


def batches() -> list[torch.Tensor]:
    """Three batches of tokens."""
    torch.manual_seed(2)
    return [torch.randint(0, 96, (3, 11)) for _ in range(3)]


def by_hand(model: Any, data: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of tokens of each expert of the first layer, and the sum of its weights times its norms."""
    block, seen = model.model.layers[0].mlp, list[torch.Tensor]()
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for ids in data:
            model(ids)
    handle.remove()
    x = torch.cat(seen)
    weights = (x @ block.gate.weight.T).softmax(-1)
    best, chosen = weights.topk(2, dim=-1)
    best = best / best.sum(-1, keepdim=True)
    numbers, added = torch.zeros(8), torch.zeros(8)
    for token, experts, gates in zip(x, chosen, best, strict=True):
        for expert, gate in zip(experts.tolist(), gates.tolist(), strict=True):
            first, second = (block.experts.gate_up_proj[expert] @ token).chunk(2)
            made = block.experts.down_proj[expert] @ (F.silu(first) * second)
            numbers[expert] += 1
            added[expert] += gate * made.norm().item()
    return numbers, added


def test_frequency_and_reap_are_those_of_the_paper(mixtral: Any) -> None:
    data = batches()
    numbers, added = by_hand(mixtral, data)
    frequency = expert_frequency_importance(mixtral, data)
    reap = reap_importance(mixtral, data)
    assert frequency.calls[EXPERTS].tokens == 99
    torch.testing.assert_close(frequency.scores[EXPERTS].float(), numbers / 99)
    torch.testing.assert_close(reap.scores[EXPERTS].float(), added / numbers.clamp(min=1), rtol=1e-4, atol=1e-6)
    assert numbers.sum() == 198
    assert len({*numbers.tolist()}) > 3


def test_the_experts_with_the_lowest_scores_go_and_the_table_says_what_stays(mixtral: Any) -> None:
    data = batches()
    small = fxprune.transform(mixtral, data[0], counts={"*.mlp.gate": 6}, importance="reap", data=data)
    scores = reap_importance(mixtral, data)
    lowest = sorted(scores.scores[EXPERTS].argsort()[:2].tolist())
    removed = fxprune.record(small).removed
    assert removed["model.layers.0.mlp.gate.weight"][0] == lowest
    left, choices, added = scores.retained(removed)[EXPERTS]
    assert (left, choices < 1, added < 1) == (6, True, True)
    calls = scores.calls[EXPERTS]
    assert added == pytest.approx(1 - float(calls.added[lowest].sum() / calls.added.sum()))
    assert f"{choices:.3f}" in scores.table(removed)
    assert EXPERTS in scores.table(removed)


def test_protected_experts_stay(mixtral: Any) -> None:
    data = batches()
    lowest = reap_importance(mixtral, data).scores[EXPERTS].argsort()[:2].tolist()
    importance = reap_importance(mixtral, data, protect={EXPERTS: lowest})
    small = fxprune.transform(mixtral, data[0], counts={"*.mlp.gate": 6}, importance=importance)
    assert not {*lowest} & {*fxprune.record(small).removed["model.layers.0.mlp.gate.weight"][0]}


def test_more_protected_experts_than_may_stay_are_refused(mixtral: Any) -> None:
    importance = reap_importance(mixtral, batches(), protect={EXPERTS: [0, 1, 2]})
    groups = importance.groups(fxprune.analyze(mixtral, batches()[0]))
    with pytest.raises(PlanError, match="too few experts for those that are protected"):
        fxprune.transform(mixtral, batches()[0], counts=dict.fromkeys(groups, 2), importance=importance)


@pytest.mark.parametrize(
    ("protect", "message"),
    [({"model.layers.7": [0]}, 'there are no experts "model.layers.7"'), ({EXPERTS: [8]}, "there is no expert 8")],
)
def test_experts_that_there_are_not_cannot_be_protected(mixtral: Any, protect: Any, message: str) -> None:
    with pytest.raises(fxprune.PlanError, match=message):
        reap_importance(mixtral, batches(), protect=protect)


def test_other_groups_and_other_models_are_refused(mixtral: Any) -> None:
    data = batches()
    with pytest.raises(fxprune.PlanError, match="a group is not of experts"):
        fxprune.transform(mixtral, data[0], ratio=0.5, importance="expert_frequency", data=data)
    with pytest.raises(fxprune.PlanError, match="no experts that can be ranked"):
        reap_importance(torch.nn.Linear(3, 2), [torch.randn(4, 3)])


def test_groups_of_experts_go_whole_with_their_correction_bias() -> None:
    """A router that is limited to groups of experts: its groups stay as large as they are."""
    sizes = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 16, "q_lora_rank": 16}
    sizes |= {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    model = mixture("DeepseekV3", num_key_value_heads=4, first_k_dense_replace=0, **sizes)
    data = batches()
    importance = reap_importance(model, data)
    blocks, width = importance.groups(fxprune.analyze(model, data[0]))
    assert (":blocks@" in blocks, ":block width@" in width) == (True, True)
    counts = {blocks: 3}
    small = fxprune.transform(model, data[0], counts=counts, importance=importance)
    gate = small.model.layers[0].mlp.gate
    assert gate.weight.shape == (6, 32)
    assert gate.e_score_correction_bias.shape == (6,)
    assert fxprune.verify(model, small, data[0]) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "field"),
    [pytest.param("Mixtral", "num_local_experts", marks=pytest.mark.slow), ("Qwen3Moe", "num_experts")],
)
def test_the_config_says_how_many_experts_stay(kind: str, field: str, tmp_path: Path) -> None:
    model = mixture(kind, 2, **{field: 8, **({"moe_intermediate_size": 16} if kind == "Qwen3Moe" else {})})
    data = batches()
    importance = reap_importance(model, data)
    counts = dict.fromkeys(importance.groups(fxprune.analyze(model, data[0])), 5)
    assert len(counts) == 2
    small = fxprune.transform(model, data[0], counts=counts, importance=importance, uniform="config")
    assert getattr(small.config, field) == 5
    assert small.config.num_experts_per_tok == 2
    small.save_pretrained(tmp_path)
    (loaded,) = loaded_elsewhere({tmp_path: f"{kind}ForCausalLM"}, [{"input_ids": data[0]}])
    assert all(torch.equal(tensor, loaded.state[name]) for name, tensor in small.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(small(data[0]))[0], loaded.results[0])
