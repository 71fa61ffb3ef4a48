"""A small model that no config says is saved so that fxprune loads it, and no other program loads it wrongly."""

from __future__ import annotations

import copy
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.configs.builder import Builder
from fxprune.configs.saving import beyond_config
from tests.configs.models import built
from tests.streaming.checkpoints import content

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

Small = tuple[Any, Any, dict[str, Any]]


@pytest.fixture(scope="module")
def llama() -> Small:
    """A Llama, a smaller one with other rotary frequencies than its config would give it, and inputs."""
    model, inputs = built("LlamaForCausalLM")
    return model, fxprune.transform(model, inputs, ratio=0.5), inputs


def same(one: Any, other: Any, inputs: dict[str, Any]) -> bool:
    """True if two models hold the same bits and compute the same, but for rounding: weights may lie elsewhere."""
    with torch.no_grad():
        close = torch.allclose(one(**inputs).logits, other(**inputs).logits, rtol=1e-5, atol=1e-5)
    a, b = one.state_dict(), other.state_dict()
    return close and a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_fxprune_loads_what_the_small_model_has_saved(llama: Small, tmp_path: Path) -> None:
    _, small, inputs = llama
    small.save_pretrained(tmp_path)
    loaded = fxprune.from_pretrained(tmp_path)
    assert type(loaded) is type(small)
    assert same(loaded, small, inputs)
    assert fxprune.record(loaded).removed == fxprune.record(small).removed
    loaded.save_pretrained(tmp_path / "again")
    assert same(fxprune.from_pretrained(tmp_path / "again"), small, inputs)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCausalLM", "AutoConfig", "LlamaForCausalLM", "LlamaModel"])
def test_no_other_program_loads_it(kind: str, llama: Small, tmp_path: Path) -> None:
    llama[1].save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        getattr(transformers, kind).from_pretrained(tmp_path)


def test_readme_and_config_say_what_to_do(llama: Small, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My model\n")
    for _ in range(2):
        llama[1].save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# My model\n")
    assert text.count(f'fxprune.from_pretrained("{tmp_path.name}")') == 1
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["model_type"] == "fxprune-llama"
    assert "fxprune.from_pretrained" in data["fxprune"]["load"]
    assert (tmp_path / "generation_config.json").exists()


@pytest.mark.parametrize("options", [{"push_to_hub": True}, {"variant": "fp16"}, {"max_shard_size": "10KB"}])
def test_options_of_the_library_are_refused(options: dict[str, Any], llama: Small, tmp_path: Path) -> None:
    with pytest.raises(fxprune.FxpruneError, match=next(iter(options))):
        llama[1].save_pretrained(tmp_path / "small", **options)
    assert not (tmp_path / "small").exists()
    llama[1].save_pretrained(tmp_path / "small", push_to_hub=False, safe_serialization=True)


def test_a_directory_with_other_weights_is_refused(llama: Small, tmp_path: Path) -> None:
    model, small, _ = llama
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(fxprune.FileError, match="holds the weights of another model"):
        small.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def narrow(llama: Small) -> Any:
    """A smaller Llama whose config says it."""
    return fxprune.transform(llama[0], llama[2], ratio={"*.mlp.gate_proj": 0.5}, uniform="config")


@pytest.mark.parametrize("form", ["of fxprune", "of the library"])
def test_a_save_that_fails_changes_nothing(
    form: str, llama: Small, narrow: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    small = llama[1] if form == "of fxprune" else narrow
    small.save_pretrained(tmp_path / "there")
    (tmp_path / "there" / "mine.txt").write_text("mine")
    before = content(tmp_path)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(small.generation_config), "save_pretrained", full)
    for name in ("there", "new/small"):
        with pytest.raises(fxprune.FileError, match=f'(?s)cannot write into ".*{name}".*No space left'):
            small.save_pretrained(tmp_path / name)
    assert content(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_second_save_leaves_nothing_of_the_first(llama: Small, narrow: Any, tmp_path: Path) -> None:
    for name in ("README.md", "mine.txt", "other.safetensors"):
        (tmp_path / name).write_text("mine")
    llama[1].save_pretrained(tmp_path)
    (tmp_path / "small_model-00001-of-00002.safetensors").write_text("of `stream`")
    llama[1].save_pretrained(tmp_path)
    assert not (tmp_path / "small_model-00001-of-00002.safetensors").exists()
    for shard, number in (("10KB", None), ("1GB", 1)):
        narrow.save_pretrained(tmp_path, max_shard_size=shard)
        assert same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), narrow, llama[2])
        left = {path.name for path in tmp_path.iterdir()}
        assert not [name for name in left if "small_model" in name]
        weights = [name for name in left if name.startswith("model")]
        assert "model.safetensors.index.json" in weights if number is None else weights == ["model.safetensors"]
    for name in ("README.md", "mine.txt", "other.safetensors"):
        assert (tmp_path / name).read_text().strip() == "mine"


def test_a_readme_of_fxprune_goes_with_its_model(llama: Small, narrow: Any, tmp_path: Path) -> None:
    llama[1].save_pretrained(tmp_path)
    narrow.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("options", [{"uniform": "config"}, {}], ids=["config", "any width"])
def test_a_model_without_values_is_to_be_streamed(options: Any, llama: Small, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = type(llama[0])(llama[0].config).eval()
    small = fxprune.transform(model, llama[2], keep={"params": 0.6}, importance="random", **options)
    with pytest.raises(fxprune.FileError, match="prune the checkpoint by its plan"):
        small.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_folder_of_a_killed_save_is_removed(narrow: Any, tmp_path: Path) -> None:
    left = tmp_path / ".fxprune-saving-left"
    left.mkdir()
    (left / ".lock").touch()
    old, new = (tmp_path / f".fxprune-saving-{name}" for name in ("empty", "of_another_process"))
    for folder, age in ((old, 1000), (new, 0)):
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    narrow.save_pretrained(tmp_path)
    assert [path.exists() for path in (left, old, new)] == [False, False, True]


def test_a_file_in_the_place_of_the_directory_is_refused(llama: Small, narrow: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for small in (llama[1], narrow):
        with pytest.raises(fxprune.FileError, match=r'file" is no directory'):
            small.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("path", ["", None, 3])
def test_a_directory_has_a_name(path: Any, llama: Small, narrow: Any) -> None:
    for small in (llama[1], narrow):
        with pytest.raises(fxprune.InputError, match="a directory is a path that is not empty"):
            small.save_pretrained(path)


def test_a_directory_in_the_place_of_a_file_is_refused(narrow: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(fxprune.FileError, match="a file of the small model has its name"):
        narrow.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_copies_and_models_pruned_in_place_are_guarded(llama: Small, tmp_path: Path) -> None:
    model, small, inputs = llama
    copy.deepcopy(small).save_pretrained(tmp_path / "copy")
    itself = fxprune.transform_(copy.deepcopy(model), inputs, ratio=0.5)
    itself.save_pretrained(tmp_path / "in_place")
    for folder in ("copy", "in_place"):
        assert not (tmp_path / folder / "model.safetensors").exists()
        assert same(fxprune.from_pretrained(tmp_path / folder), small, inputs)


def test_a_pickled_model_loads_as_before(llama: Small) -> None:
    _, small, inputs = llama
    assert same(pickle.loads(pickle.dumps(small)), small, inputs)


def test_what_the_config_says_is_saved_by_the_library_itself(tmp_path: Path) -> None:
    model, inputs = built("LlamaForCausalLM")
    small = fxprune.transform(model, inputs, ratio={"*.mlp.gate_proj": 0.5}, uniform="config")
    small.save_pretrained(tmp_path)
    assert not (tmp_path / "small_model.safetensors").exists()
    assert same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), small, inputs)
    with pytest.raises(fxprune.FileError, match="was not written by fxprune"):
        fxprune.from_pretrained(tmp_path)


def test_a_scale_that_the_class_computes_otherwise_is_seen(tmp_path: Path) -> None:
    model, inputs = built("BertForMaskedLM")
    small = fxprune.transform(model, inputs, ratio=0.5)
    small.save_pretrained(tmp_path)
    assert (tmp_path / "small_model.safetensors").exists()
    assert same(fxprune.from_pretrained(tmp_path), small, inputs)


def test_a_class_of_another_package_has_to_be_given(llama: Small, tmp_path: Path) -> None:
    llama[1].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data["fxprune"]["class"] = "os.path.join"
    path.write_text(json.dumps(data))
    with pytest.raises(fxprune.FileError, match="would run code that a file names"):
        fxprune.from_pretrained(tmp_path)
    given = fxprune.from_pretrained(tmp_path, model_class=transformers.LlamaForCausalLM)
    assert same(given, llama[1], llama[2])


@pytest.mark.parametrize("name", ["Wav2Vec2ForCTC", "MarianMTModel", "T5ForConditionalGeneration"])
def test_the_config_says_an_original(name: str) -> None:
    """One has a parametrized layer, one a weight that its class does not save, one tied weights."""
    assert beyond_config(built(name)[0]) == ""


def test_a_weight_that_its_class_does_not_save_is_known() -> None:
    model, _ = built("MarianMTModel")
    builder = Builder(model)
    assert "model.encoder.embed_positions.weight" in builder.build(builder.data).computed


def test_trainers_write_checkpoints_with_plain_weights(llama: Small, tmp_path: Path) -> None:
    """A trainer gives `state_dict`, and loads the file into a model that it has pruned again."""
    llama[1].save_pretrained(tmp_path, state_dict=None)
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "small_model.safetensors").exists()
