"""Packed weights are cut at the borders of their blocks, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune
from tests.streaming.checkpoints import model_of, pruned, saved

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


def first_stay(group: Any) -> torch.Tensor:
    """An importance by which the first channels of each group stay, so that whole blocks go."""
    return torch.arange(group.size, 0, -1)


def packed(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any]) -> None:
    """Replace the weights of a checkpoint, and say in its config how they are packed."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "quantization_config": quantization}))


@pytest.fixture
def float8(tmp_path: Path) -> tuple[Path, Any]:
    """A Llama whose MLP weights are float8 with a scale for each block of 16 x 16."""
    model = saved(model_of("Llama", hidden_size=32, intermediate_size=64), tmp_path / "large", "1GB")
    tensors = load_file(tmp_path / "large" / "model.safetensors")
    for name in [n for n in tensors if ".mlp." in n]:
        rows, columns = (size // 16 for size in tensors[name].shape)
        tensors[f"{name}_scale_inv"] = torch.arange(1.0, rows * columns + 1).reshape(rows, columns)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    packed(tmp_path / "large", tensors, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    return tmp_path / "large", model


def only_mlp(model: Any, **how: Any) -> fxprune.Plan:
    """A plan that removes half of the MLP's channels."""
    return pruned(model, ratio={"*.mlp.*": 0.5}, uniform="config", **how)[1]


def test_scales_of_blocks_are_cut_with_their_weights(float8: Any, tmp_path: Path) -> None:
    plan = only_mlp(float8[1], importance=first_stay)
    fxprune.stream(float8[0], plan, tmp_path / "small", progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (float8[0], tmp_path / "small"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[f"{name}_scale_inv"], before[f"{name}_scale_inv"][:2])
    assert torch.equal(after[name].float(), before[name].float()[:32])
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(after[f"{name}_scale_inv"], before[f"{name}_scale_inv"][:, :2])
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]


def test_a_block_that_would_be_cut_in_two_is_named(float8: Any, tmp_path: Path) -> None:
    plan = only_mlp(float8[1], importance="random")
    with pytest.raises(fxprune.PlanError, match=r'block of the packed tensor "model.layers.0.mlp.*_scale_inv" in two'):
        fxprune.stream(float8[0], plan, tmp_path / "small", progress=False)
    assert not (tmp_path / "small").exists()


def test_packed_weights_need_a_plan_that_a_config_says(float8: Any, tmp_path: Path) -> None:
    plan = pruned(float8[1], ratio={"*.0.mlp.*": 0.5}, importance=first_stay)[1]
    with pytest.raises(fxprune.PlanError, match="need a plan that the config can say"):
        fxprune.stream(float8[0], plan, tmp_path / "small", progress=False)


def test_mxfp4_blocks_are_cut(tmp_path: Path) -> None:
    model = saved(model_of("GptOss"), tmp_path / "large", "1GB")
    tensors = load_file(tmp_path / "large" / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(0, 256, (experts, outputs, inputs // 32), dtype=torch.uint8)
    packed(tmp_path / "large", tensors, {"quant_method": "mxfp4"})
    plan = pruned(model, ratio={"*.mlp.*": 0.5}, uniform="config", importance=first_stay)[1]
    name = "model.layers.0.mlp.experts.down_proj"
    assert plan.removed[name][1] == list(range(32, 64))
    fxprune.stream(tmp_path / "large", plan, tmp_path / "small", progress=False)
    after = load_file(tmp_path / "small" / "model.safetensors")
    experts = plan.kept.get(name, {}).get(0, [0, 1, 2, 3])
    assert torch.equal(after[f"{name}_blocks"], tensors[f"{name}_blocks"][experts][:, :, :1])
    assert torch.equal(after[f"{name}_scales"], tensors[f"{name}_scales"][experts][:, :, :1])
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(after[f"{name}_blocks"], tensors[f"{name}_blocks"][experts][:, plan.kept[name][2]])
