"""Refusals of checkpoints and plans that do not fit, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.errors import FileError
from fxprune.streaming.names import names_of
from tests.streaming.checkpoints import content, model_of, pruned, saved, tokens

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fxprune.Plan, Any]:
    """A checkpoint in one file, a plan for it, and the model."""
    folder = tmp_path_factory.mktemp("llama")
    model = saved(model_of("Llama"), folder, "1GB")
    return folder, pruned(model, ratio=0.5, uniform="config")[1], model


def test_a_checkpoint_that_was_loaded_leaves_default_devices_alone(llama: Any) -> None:
    with torch.device("meta"):
        assert torch.linspace(0, 1, 3).is_meta


def changed(source: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint whose tensors a function changes."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    return target


def without(name: str) -> Any:
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {**t, "model.layers.0.mlp.extra": torch.zeros(2)}, 'belongs to "model.layers.0.mlp.extra"'),
        (without("model.layers.1.mlp.up_proj.weight"), 'has no "model.layers.1.mlp.up_proj.weight"'),
        (lambda t: {**t, "model.norm.weight": torch.zeros(5)}, r"\"model.norm.weight\" has shape \(5,\)"),
        (
            lambda t: {**t, "model.layers.0.mlp.up_proj.qweight": torch.zeros(2, dtype=torch.int32)},
            "packed by an",
        ),
    ],
    ids=["too much", "missing", "shape", "packed"],
)
def test_a_tensor_without_partner_is_refused(change: Any, said: str, llama: Any, tmp_path: Path) -> None:
    source = changed(llama[0], tmp_path / "large", change)
    with pytest.raises(fxprune.FileError, match=said):
        fxprune.stream(source, llama[1], tmp_path / "small", progress=False)
    assert not (tmp_path / "small").exists()


def test_tensors_that_the_class_computes_are_left_out(llama: Any, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source = changed(llama[0], tmp_path / "large", lambda t: {**t, name: torch.zeros(4)})
    assert fxprune.stream(source, llama[1], tmp_path / "small", progress=False).ignored == (name,)
    assert name not in load_file(tmp_path / "small" / "model.safetensors")


def test_a_plan_of_another_model_is_refused(llama: Any, tmp_path: Path) -> None:
    plan = pruned(model_of("Llama", intermediate_size=40), ratio=0.5)[1]
    with pytest.raises(fxprune.PlanError, match="for another model"):
        fxprune.stream(llama[0], plan, tmp_path / "small", progress=False)


def test_a_plan_that_multiplies_weights_of_norms_is_refused(llama: Any, tmp_path: Path) -> None:
    plan = pruned(llama[2], ratio=0.5, norms="preserve")[1]
    with pytest.raises(fxprune.PlanError, match="that multiplies weights of norms cannot be streamed"):
        fxprune.stream(llama[0], plan, tmp_path / "small", progress=False)


def test_a_plan_without_sizes_is_refused(llama: Any, tmp_path: Path) -> None:
    plan = fxprune.analyze(llama[2], tokens()).plan(ratio=0.5)
    with pytest.raises(fxprune.PlanError, match="does not know the sizes"):
        fxprune.stream(llama[0], plan, tmp_path / "small", progress=False)


def test_a_directory_with_other_weights_is_refused(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(fxprune.FileError, match="holds weights already"):
        fxprune.stream(llama[0], llama[1], tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(fxprune.FileError, match="one directory"):
        fxprune.stream(llama[0], llama[1], llama[0], progress=False)


def test_a_directory_without_safetensors_is_refused(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(fxprune.FileError, match="no weights that can be read here"):
        fxprune.stream(tmp_path, llama[1], tmp_path / "small", progress=False)
    with pytest.raises(fxprune.FileError, match="there is no directory"):
        fxprune.stream(tmp_path / "nothing", llama[1], tmp_path / "small", progress=False)


def test_weights_in_subdirectories_are_named(llama: Any, tmp_path: Path) -> None:
    """The layout of a pipeline of diffusers: alone, and beside weights that are streamed."""
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        (tmp_path / "pipe" / name).parent.mkdir(parents=True)
        save_file({"w": torch.zeros(2)}, tmp_path / "pipe" / f"{name}.safetensors")
    with pytest.raises(fxprune.FileError, match="text_encoder, unet have weights, each of a model of its own") as found:
        fxprune.stream(tmp_path / "pipe", llama[1], tmp_path / "small", progress=False)
    assert f'stream each with its own plan, such as stream("{tmp_path / "pipe" / "text_encoder"}"' in str(found.value)
    with pytest.raises(fxprune.FileError, match=r"rename diffusion_pytorch_model.safetensors to model.safetensors"):
        fxprune.stream(tmp_path / "pipe" / "unet", llama[1], tmp_path / "small", progress=False)
    both = changed(llama[0], tmp_path / "large", lambda tensors: tensors)
    (tmp_path / "pipe" / "unet").rename(both / "unet")
    done = fxprune.stream(both, llama[1], tmp_path / "small", progress=False)
    assert str(done).endswith("; left out: unet/diffusion_pytorch_model.safetensors")
    assert not (tmp_path / "small" / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_without_space_nothing_is_made(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(fxprune.FileError, match="bytes are needed, 100 are free"):
        fxprune.stream(llama[0], llama[1], tmp_path / "new" / "small", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_written_to_is_refused(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(fxprune.FileError, match="name a directory that can be written to"):
        fxprune.stream(llama[0], llama[1], tmp_path / "small", progress=False)


def test_a_tensor_in_two_files_is_refused(llama: Any, tmp_path: Path) -> None:
    source = changed(llama[0], tmp_path / "large", lambda tensors: tensors)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "model-00001-of-00002.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, source / "model-00002-of-00002.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(fxprune.FileError, match=r'"model-00001-of-00002.safetensors" has it too'):
        fxprune.stream(source, llama[1], tmp_path / "small", progress=False)
    assert not (tmp_path / "small").exists()


def test_a_snapshot_of_links_becomes_files(llama: Any, tmp_path: Path) -> None:
    """The cache of Hugging Face has links to blobs; the result may lie inside the source."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in llama[0].iterdir():
        (snapshot / path.name).symlink_to(path)
    fxprune.stream(snapshot, llama[1], snapshot / "small", progress=False)
    fxprune.stream(llama[0], llama[1], tmp_path / "small", progress=False)
    assert content(snapshot / "small") == content(tmp_path / "small")
    assert not [path for path in (snapshot / "small").iterdir() if path.is_symlink()]


def test_an_index_that_contradicts_its_files_is_refused(llama: Any, tmp_path: Path) -> None:
    source = changed(llama[0], tmp_path / "large", lambda t: t)
    names = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    index = source / "model.safetensors.index.json"
    for weight_map, said in (
        ({**names, "ghost": "model.safetensors"}, "contradicts the files"),
        ({**names, "ghost": "../model.safetensors"}, "names a file that is not there"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        with pytest.raises(fxprune.FileError, match=said):
            fxprune.stream(source, llama[1], tmp_path / "small", progress=False)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"workers": 0}, fxprune.InputError), ({"memory": "1 kB"}, fxprune.InputError), ({"shard_size": "x"}, ValueError)],
)
def test_arguments_without_meaning_are_refused(options: Any, kind: type[Exception], llama: Any, tmp_path: Path) -> None:
    with pytest.raises(kind):
        fxprune.stream(llama[0], llama[1], tmp_path / "small", progress=False, **options)


def test_memory_limits_the_workers(llama: Any, tmp_path: Path) -> None:
    done = fxprune.stream(llama[0], llama[1], tmp_path / "s", memory="5 MB", workers=8, progress=False)
    assert done.workers == 1


def test_a_single_file_beside_an_index_of_others_is_refused(llama: Any, tmp_path: Path) -> None:
    source = changed(llama[0], tmp_path / "large", lambda t: t)
    tensors = load_file(source / "model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, source / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(fxprune.FileError, match="holds two checkpoints"):
        fxprune.stream(source, llama[1], tmp_path / "small", progress=False)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("name", ["config.json", "README.md", "notes/mine.txt"])
def test_a_directory_with_other_files_is_refused(name: str, llama: Any, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(fxprune.FileError, match="holds files already"):
        fxprune.stream(llama[0], llama[1], tmp_path, progress=False)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_hidden_files_of_the_user_stay(llama: Any, tmp_path: Path) -> None:
    (tmp_path / ".gitattributes").write_text("mine")
    fxprune.stream(llama[0], llama[1], tmp_path, progress=False)
    assert (tmp_path / ".gitattributes").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "small"])
def test_a_file_in_the_place_of_the_directory_is_refused(below: str, llama: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(fxprune.FileError, match=r'file" is no directory'):
        fxprune.stream(llama[0], llama[1], tmp_path / "file" / below, progress=False)


def test_an_import_that_fails_says_its_own_text(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_library.py").write_text(
        "def __getattr__(name):\n    raise ImportError('flash needs a hammer')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fxprune.streaming.folder.LIBRARY", "broken_library")
    with pytest.raises(fxprune.FileError, match="flash needs a hammer"):
        fxprune.stream(llama[0], llama[1], tmp_path / "small", progress=False)


@pytest.mark.parametrize("gone", ["experts.1.w3.", "experts.3."])
def test_a_missing_tensor_of_an_expert_is_named(gone: str, tmp_path: Path) -> None:
    model = model_of("Mixtral", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert names_of(model, shapes, tmp_path).parts
    left = {name: shape for name, shape in shapes.items() if gone not in name}
    with pytest.raises(FileError) as caught:
        names_of(model, left, tmp_path)
    first, at, why, _ = str(caught.value).splitlines()
    assert "checkpoint has no" in first
    assert gone in first
    assert str(tmp_path) in at
    assert '"model.layers.0.mlp.experts.' in at
    assert "tensors, of which" in why
