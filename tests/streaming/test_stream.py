"""A checkpoint that is streamed becomes what `transform` makes of the model in memory, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.planning.factors import Factor
from fxprune.streaming import copying
from tests.streaming.checkpoints import content, loaded, model_of, pruned, same_bits, saved, tokens

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

CONFIG = {"ratio": 0.5, "uniform": "config"}
FREE = {"ratio": 0.3}


def rewritten(folder: Path, change: Any) -> None:
    """Let a function change the tensors of a checkpoint, which is one file then."""
    tensors = {name: t for path in folder.glob("model*.safetensors") for name, t in load_file(path).items()}
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", [CONFIG, FREE], ids=["config", "free"])
@pytest.mark.parametrize(
    ("family", "dtype", "other"),
    [
        ("Llama", torch.bfloat16, {}),
        ("Llama", torch.float32, {"tie_word_embeddings": True}),
        ("GPT2", torch.float32, {}),
        ("Mixtral", torch.bfloat16, {}),
    ],
    ids=["llama", "tied", "gpt2", "mixtral"],
)
def test_the_result_is_that_of_the_model_in_memory(
    family: str, dtype: torch.dtype, other: dict[str, Any], how: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(model_of(family, dtype, **other), tmp_path / "large")
    small, plan = pruned(model, **how)
    done = fxprune.stream(tmp_path / "large", plan, tmp_path / "small", shard_size=8000, progress=False)
    assert done.config_says_it == ("uniform" in how)
    assert len(done.files) > 1
    again = loaded(type(model), tmp_path / "small", config_says_it=done.config_says_it)
    assert same_bits(small, again)
    inputs = tokens()
    with torch.no_grad():
        assert torch.equal(small(**inputs).logits, again(**inputs).logits)


def tensors_as_saved(family: str, how: dict[str, Any], file: str, folder: Path) -> list[str]:
    """The names of the tensors in a streamed file, which has the names and bits of one that `save_pretrained` wrote."""
    model = saved(model_of(family), folder / "large")
    small, plan = pruned(model, **how)
    fxprune.stream(folder / "large", plan, folder / "small", progress=False)
    small.save_pretrained(folder / "saved")
    ours, theirs = (load_file(folder / name / file) for name in ("small", "saved"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    return list(ours)


def test_files_keep_the_names_of_the_checkpoint_where_a_config_says_the_model(tmp_path: Path) -> None:
    names = tensors_as_saved("Mixtral", CONFIG, "model.safetensors", tmp_path)
    assert "model.layers.0.block_sparse_moe.experts.1.w1.weight" in names
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_local_experts"] == 2


def test_one_file_that_no_config_says_differs_from_a_saved_one_by_its_record_alone(tmp_path: Path) -> None:
    assert tensors_as_saved("Llama", FREE, "small_model.safetensors", tmp_path)


def test_weights_carry_the_factors_of_the_plan(tmp_path: Path) -> None:
    model = saved(model_of("Llama", torch.bfloat16), tmp_path / "large")
    _, plan = pruned(model, **FREE)
    name, rows = "model.layers.0.self_attn.q_proj.weight", tuple(range(0, 8, 2))
    stays = [i for i in rows if i not in plan.removed.get(name, {}).get(0, [])]
    factors = (
        Factor(name, 0, tuple(stays), 0.3),
        Factor("model.layers.1.mlp.up_proj.weight", 0, None, 1.7),
    )
    changed = replace(plan, factors=factors)
    fxprune.stream(tmp_path / "large", plan, tmp_path / "plain", progress=False)
    fxprune.stream(tmp_path / "large", changed, tmp_path / "small", progress=False)
    before, after = (load_file(tmp_path / n / "small_model.safetensors") for n in ("plain", "small"))
    kept = [i for i in range(32) if i not in plan.removed[name][0]]
    expected = before[name].double()
    expected[[kept.index(i) for i in stays]] *= 0.3
    assert torch.equal(after[name], expected.to(torch.bfloat16))
    other = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(after[other], (before[other].double() * 1.7).to(torch.bfloat16))


def test_a_checkpoint_of_the_base_model_gets_its_prefix(tmp_path: Path) -> None:
    model = saved(model_of("GPT2"), tmp_path / "large")
    rewritten(tmp_path / "large", lambda found: {n.removeprefix("transformer."): t for n, t in found.items()})
    small, plan = pruned(model, **CONFIG)
    fxprune.stream(tmp_path / "large", plan, tmp_path / "small", progress=False)
    assert same_bits(small, type(model).from_pretrained(tmp_path / "small").eval())


def test_float8_weights_pass(tmp_path: Path) -> None:
    model = saved(model_of("Llama"), tmp_path / "large")
    _, plan = pruned(model, **CONFIG)
    kind = torch.float8_e4m3fn
    rewritten(tmp_path / "large", lambda found: {n: t.to(kind) if "mlp" in n else t for n, t in found.items()})
    fxprune.stream(tmp_path / "large", plan, tmp_path / "small", progress=False)
    before = load_file(tmp_path / "large" / "model.safetensors")
    after = load_file(tmp_path / "small" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = (plan.kept[name][dim] for dim in (0, 1))
    assert after[name].dtype == kind
    assert torch.equal(after[name].float(), before[name].float()[rows][:, columns])


def test_files_beside_the_weights_are_copied(tmp_path: Path) -> None:
    model = saved(model_of("Llama"), tmp_path / "large")
    (tmp_path / "large" / "tokenizer.json").write_text("{}")
    copied = {"vocab.bin": b"1", "sub/a.txt": b"2", "1_Pooling/config.json": b"3", "sub/deep/x.index.json": b"4"}
    left_out = (".gitattributes", "original/consolidated.00.pth", "pytorch_model.bin", "pytorch_model.bin.index.json")
    for name, data in {**copied, **dict.fromkeys(left_out, b"old")}.items():
        (tmp_path / "large" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "large" / name).write_bytes(data)
    _, plan = pruned(model, **CONFIG)
    small = tmp_path / "large" / "small"  # it does not go into itself
    done = fxprune.stream(tmp_path / "large", plan, small, progress=False)
    found = content(small)
    own = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert found.keys() == {*own, *copied}
    assert {name: found[name] for name in copied} == copied
    assert done.ignored == left_out


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    model = saved(model_of("Llama"), tmp_path / "large")
    plan = pruned(model, **CONFIG)[1]
    done = fxprune.stream(tmp_path / "large", plan, tmp_path / "small", shard_size=8000, checksum=True, progress=False)
    if shutil.which("sha256sum"):
        checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "small", capture_output=True)
        assert checked.returncode == 0
        assert checked.stdout.count(b"OK") == len(done.files)


@pytest.mark.parametrize("block", [64, 1000])
def test_blocks_of_any_size_give_the_same_bytes(block: int, monkeypatch: Any, tmp_path: Path) -> None:
    model = saved(model_of("Mixtral", torch.bfloat16), tmp_path / "large")
    plan = pruned(model, **FREE)[1]
    fxprune.stream(tmp_path / "large", plan, tmp_path / "whole", progress=False)
    monkeypatch.setattr(copying, "BLOCK", block)
    monkeypatch.setattr(copying, "SHORT", 0)
    fxprune.stream(tmp_path / "large", plan, tmp_path / "blocks", workers=1, progress=False)
    monkeypatch.setattr(copying, "CALL", 0.0)
    fxprune.stream(tmp_path / "large", plan, tmp_path / "runs", workers=3, progress=False)
    whole, *others = ((tmp_path / n / "small_model.safetensors").read_bytes() for n in ("whole", "blocks", "runs"))
    assert all(other == whole for other in others)


class Plain(torch.nn.Module):
    """A model without a config."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_a_model_without_a_config_is_given(tmp_path: Path) -> None:
    model, inputs = Plain().eval(), torch.randn(2, 6)
    (tmp_path / "large").mkdir()
    save_file(model.state_dict(), tmp_path / "large" / "model.safetensors")
    small = fxprune.transform(model, inputs, ratio=0.5)
    plan = fxprune.record(small).plan
    with pytest.raises(fxprune.FileError, match=r"has no config\.json"):
        fxprune.stream(tmp_path / "large", plan, tmp_path / "small", progress=False)
    with torch.device("meta"):
        given = Plain()
    done = fxprune.stream(tmp_path / "large", plan, tmp_path / "small", model=given, progress=False)
    assert not done.config_says_it
    assert "fxprune.load" in str(done)
    assert content(tmp_path / "small").keys() == {"model.safetensors"}
    assert same_bits(small, fxprune.load(tmp_path / "small" / "model.safetensors", into=given))
    fxprune.stream(tmp_path / "large", plan, tmp_path / "several", model=given, shard_size=100, progress=False)
    assert same_bits(small, fxprune.load(tmp_path / "several" / "model.safetensors.index.json", into=given))


@pytest.mark.parametrize("how", [CONFIG, FREE], ids=["config", "free"])
def test_the_config_of_a_given_model_is_written(how: dict[str, Any], tmp_path: Path) -> None:
    model = saved(model_of("Llama", torch.bfloat16), tmp_path / "large")
    (tmp_path / "large" / "config.json").unlink()
    small, plan = pruned(model, **how)
    with torch.device("meta"):
        given = type(model)(model.config)
    if how is FREE:
        with pytest.raises(fxprune.FileError, match="has no values"):
            fxprune.stream(tmp_path / "large", plan, tmp_path / "small", model=given, progress=False)
        given = model
    done = fxprune.stream(tmp_path / "large", plan, tmp_path / "small", model=given, progress=False)
    assert done.config_says_it == (how is CONFIG)
    assert same_bits(small, loaded(type(model), tmp_path / "small", config_says_it=done.config_says_it))
    if how is CONFIG:
        assert json.loads((tmp_path / "small" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
