"""Models that accelerate has dispatched: pruned where their weights lie, with the hooks on the small model."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.dispatched import undispatched
from fxprune.offloaded import StoredTensor
from fxprune.offloaded.places import LOCK, PREFIX, InMemory
from tests.offloaded.nets import TOKENS, WAYS, in_parts, layers_on_disk, net, on_cpu, on_disk, whole_blocks
from tests.streaming.checkpoints import content, library, model_of, same_bits, saved, tokens
from tests.support import randomise

ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def folders(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name.startswith(PREFIX))


def devices(model: nn.Module) -> dict[str, str]:
    return {name: str(tensor.device) for name, tensor in model.state_dict(keep_vars=True).items()}


def hooks(model: nn.Module) -> list[tuple[str, str]]:
    """Path -> the settings of each hook."""
    found = []
    for path, module in model.named_modules():
        hook = module.__dict__.get("_hf_hook")
        found += [(path, repr(one)) for one in getattr(hook, "hooks", [hook]) if one is not None]
    return found


@ways
def test_the_small_model_is_that_of_a_plain_one_with_the_hooks_of_the_dispatched_one(way: Any, tmp_path: Path) -> None:
    model = randomise(net(), 0)
    dispatched = way(model, tmp_path)
    expected = fxprune.transform(model, TOKENS, ratio=0.5)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    assert torch.equal(small(TOKENS), expected(TOKENS))
    assert torch.equal(dispatched(TOKENS), model(TOKENS))
    assert hooks(small) == hooks(dispatched)
    assert devices(small) == devices(dispatched)
    assert fxprune.record(small).removed == fxprune.record(expected).removed
    assert fxprune.verify(dispatched, small, TOKENS) < 1e-9


@pytest.mark.parametrize("way", [on_disk, in_parts], ids=lambda way: way.__name__)
def test_plans_costs_and_scores_are_those_of_a_plain_model(way: Any, tmp_path: Path) -> None:
    model = randomise(net(), 0)
    analysis, plain = fxprune.analyze(way(model, tmp_path), TOKENS), fxprune.analyze(model, TOKENS)
    assert analysis.captured.keeps_class
    plan = analysis.plan(keep={"params": 0.6})
    assert plan.removed == plain.plan(keep={"params": 0.6}).removed
    assert analysis.cost(plan) == plain.cost(plan)
    assert torch.equal(analysis.transform(plan)(TOKENS), plain.transform(plan)(TOKENS))


@pytest.mark.parametrize("way", [on_cpu, in_parts, whole_blocks], ids=lambda way: way.__name__)
def test_in_place_the_modules_stay_and_their_hooks_go_on(way: Any, tmp_path: Path) -> None:
    model = randomise(net(), 0)
    dispatched: Any = way(model, tmp_path)
    up = dispatched.blocks[1].up
    assert fxprune.transform_(dispatched, TOKENS, ratio=0.5) is dispatched
    assert dispatched.blocks[1].up is up
    assert up.out_features == 16
    for module in dispatched.modules():
        assert "_hf_hook" not in module.__dict__ or module.forward.args[0] is module
    assert torch.equal(dispatched(TOKENS), fxprune.transform(model, TOKENS, ratio=0.5)(TOKENS))
    again = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    assert again.blocks[1].up.out_features == 8
    assert torch.isfinite(again(TOKENS)).all()


def test_scores_that_need_gradients_are_those_of_a_plain_model(tmp_path: Path) -> None:
    model, options = randomise(net(), 0), {"ratio": 0.5, "importance": "taylor", "data": [TOKENS, TOKENS.flip(1)]}
    dispatched = on_disk(model, tmp_path)
    expected, small = (
        fxprune.transform(one, TOKENS, loss=lambda model, x: model(x).square().mean(), **options)
        for one in (model, dispatched)
    )
    assert torch.equal(small(TOKENS), expected(TOKENS))


def test_weights_on_disk_stay_there_and_their_folder_goes_with_the_last_copy_of_the_model(tmp_path: Path) -> None:
    dispatched = on_disk(net(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    expected = small(TOKENS)
    assert len(folders(tmp_path)) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    other = copy.deepcopy(small)
    del small
    gc.collect()
    assert torch.equal(other(TOKENS), expected)
    del other
    gc.collect()
    assert folders(tmp_path) == []


def test_a_tied_weight_is_written_once_and_stays_tied(tmp_path: Path) -> None:
    dispatched = on_disk(net(), tmp_path)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    files = [path for name in folders(tmp_path) for path in (tmp_path / name).glob("*.safetensors")]
    assert len(files) == len(list(net().parameters()))
    loaded = accelerate.hooks.remove_hook_from_module(copy.deepcopy(small), recurse=True)
    assert torch.equal(loaded.head.weight, loaded.embed.weight)


def test_equal_weights_of_norms_are_not_tied(tmp_path: Path) -> None:
    plain = undispatched(on_disk(net(), tmp_path))
    assert dict(plain.named_parameters()).keys() == dict(net().named_parameters()).keys()


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    left, alive = tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}alive"
    for path in (left, alive):
        path.mkdir()
    (left / LOCK).touch()
    small = fxprune.transform(on_disk(net(), tmp_path), TOKENS, ratio=0.5)
    assert not left.exists()
    assert alive.exists()  # it has no lock to try
    assert len(folders(tmp_path)) == 2
    assert small(TOKENS).shape == (2, 5, 11)


def test_weights_on_another_device_than_the_first_come_back_to_it() -> None:
    place = InMemory(torch.arange(4.0))
    stands: Any = StoredTensor(nn.Parameter(torch.empty(4, device="meta")), "w", place, torch.device("cpu"))
    assert torch.equal(stands * 2, torch.arange(4.0) * 2)
    with torch.no_grad():
        stands.mul_(3)
    assert torch.equal(stands.whole(), torch.arange(4.0) * 3)
    assert torch.equal(place.tensor, torch.arange(4.0))
    assert torch.equal(copy.deepcopy(stands).whole(), stands.whole())


def test_a_saved_model_is_that_of_a_plain_one(tmp_path: Path) -> None:
    model = randomise(net(), 0)
    small = fxprune.transform(on_disk(model, tmp_path / "off"), TOKENS, ratio=0.5)
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", into=model)
    assert torch.equal(again(TOKENS), small(TOKENS))


@pytest.mark.parametrize(
    "options",
    [
        {"keep": {"params": 0.6}},
        {"drop": ["model.layers.1"], "ratio": 0.3, "uniform": "config"},
    ],
    ids=["any width", "config, without a layer"],
)
def test_a_language_model_on_disk_keeps_generate_and_save_pretrained(tmp_path: Path, options: Any) -> None:
    model = saved(model_of("Llama", num_hidden_layers=3, tie_word_embeddings=True), tmp_path / "large")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    spread = type(model).from_pretrained(tmp_path / "large", device_map=places, offload_folder=str(tmp_path / "off"))
    spread = spread.eval()
    assert spread.model.layers[2].mlp.up_proj.weight.device.type == "meta"
    inputs = tokens()
    expected, small = (fxprune.transform(one, inputs, **options) for one in (model, spread))
    assert torch.equal(small(**inputs).logits, expected(**inputs).logits)
    assert small.generate(**inputs, max_new_tokens=3, do_sample=False).equal(
        expected.generate(**inputs, max_new_tokens=3, do_sample=False)
    )
    assert ("model.layers.2" in small.hf_device_map) == ("drop" not in options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        small.save_pretrained(tmp_path / "small")
    load = library().AutoModelForCausalLM.from_pretrained if "uniform" in options else fxprune.from_pretrained
    assert torch.equal(load(tmp_path / "small").eval()(**inputs).logits, expected(**inputs).logits)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", [{"uniform": "config"}, {}], ids=["config", "any width"])
@pytest.mark.parametrize("way", [on_cpu, on_disk, layers_on_disk], ids=lambda way: way.__name__)
def test_a_small_model_is_saved_wherever_its_weights_lie(way: Any, options: Any, tmp_path: Path) -> None:
    """transformers alone finds the weights only where `device_map` was used."""
    model = saved(model_of("Llama", tie_word_embeddings=way is on_disk), tmp_path / "large")
    inputs = tokens()
    for one, folder in ((model, "plain"), (way(model, tmp_path / "off"), "spread")):
        small = fxprune.transform(one, inputs, ratio=0.5, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            small.save_pretrained(tmp_path / folder / "small")
        assert torch.isfinite(small(**inputs).logits).all()
    plain, spread = content(tmp_path / "plain"), content(tmp_path / "spread")
    assert plain.keys() == spread.keys()
    for name in plain:
        assert plain[name] == spread[name] or name == "small/small_model.safetensors"
    load = type(model).from_pretrained if options else fxprune.from_pretrained
    assert same_bits(*(load(tmp_path / folder / "small") for folder in ("plain", "spread")))


def test_a_graph_is_refused(tmp_path: Path) -> None:
    for options in ({"path": "fx"}, {"prefer": "graph"}):
        with pytest.raises(fxprune.PlanError, match="a dispatched model cannot become a graph"):
            fxprune.transform(on_cpu(net(), tmp_path), TOKENS, ratio=0.5, **options)


def test_followers_are_refused(tmp_path: Path) -> None:
    dispatched = on_cpu(net(), tmp_path)
    optimizer = torch.optim.SGD(dispatched.parameters(), 0.1)
    for function in (fxprune.transform, fxprune.transform_):
        with pytest.raises(fxprune.PlanError, match="of a dispatched model cannot follow"):
            function(dispatched, TOKENS, ratio=0.5, optimizer=optimizer)


def test_functions_that_write_into_the_model_refuse_it(tmp_path: Path) -> None:
    dispatched = on_disk(net(), tmp_path)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    removed = fxprune.record(small).removed
    for name, call in {
        "masked": lambda: fxprune.masked(dispatched, removed),
        "expand": lambda: fxprune.expand(small, dispatched),
        "recalibrate": lambda: fxprune.recalibrate(small, [TOKENS]),
    }.items():
        with pytest.raises(fxprune.CaptureError, match=f"{name} does not work on a dispatched model"):
            call()


def test_a_pruner_makes_it_smaller_in_steps(tmp_path: Path) -> None:
    model, dispatched = randomise(net(), 0), on_disk(randomise(net(), 0), tmp_path)
    for one in (model, dispatched):
        pruner = fxprune.GradualPruner(one, TOKENS, keep={"params": 0.6}, steps=2)
        pruner.step()
        pruner.step()
    assert torch.equal(dispatched(TOKENS), model(TOKENS))


def test_hooks_that_do_more_than_to_move_weights_are_refused(tmp_path: Path) -> None:
    class Doubles(accelerate.hooks.ModelHook):
        """A hook of the user."""

        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return 2 * output

    dispatched: Any = on_cpu(net(), tmp_path)
    accelerate.hooks.add_hook_to_module(dispatched.blocks[0].up, Doubles(), append=True)
    with pytest.raises(fxprune.CaptureError, match="accelerate has a Doubles on it"):
        fxprune.transform(dispatched, TOKENS, ratio=0.5)


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    dispatched = on_disk(net(), tmp_path / "off")
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    (tmp_path / "off").rename(tmp_path / "gone")
    with pytest.raises(fxprune.FileError) as found:
        fxprune.transform(dispatched, TOKENS, ratio=0.5)
    assert isinstance(found.value, FileNotFoundError)
    for said in (
        'off/embed.weight.dat"',
        "the file was removed while the model was in use",
        "keep its files while it is used",
    ):
        assert said in str(found.value)
    with pytest.raises(fxprune.FileError, match="make the small model again, and keep the folder until it is saved"):
        fxprune.save(small, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    dispatched = on_disk(net(), tmp_path)
    path = tmp_path / "blocks.1.up.weight.dat"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(fxprune.FileError, match=r"blocks\.1\.up\.weight\.dat"):
        fxprune.transform(dispatched, TOKENS, ratio=0.5)


def test_an_offload_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    dispatched = on_disk(net(), tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with pytest.raises(fxprune.FileError, match="check that the offload folder is there, and that it can be written"):
        fxprune.transform(dispatched, TOKENS, ratio=0.5)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    dispatched = in_parts(net(), tmp_path)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(fxprune.FileError, match="free some space on the disk of the offload folder"):
        fxprune.transform(dispatched, TOKENS, ratio=0.5)
    gc.collect()
    assert folders(tmp_path) == []
    assert torch.equal(dispatched(TOKENS), net()(TOKENS))


def test_a_norm_that_counts_the_original_width_gets_the_hook_of_its_place(tmp_path: Path) -> None:
    model = randomise(net(), 0)
    expected = fxprune.transform(model, TOKENS, ratio=0.5, norms="preserve")
    small = fxprune.transform(on_disk(model, tmp_path), TOKENS, ratio=0.5, norms="preserve")
    assert torch.equal(small(TOKENS), expected(TOKENS))
    assert type(small.blocks[0].norm) is type(expected.blocks[0].norm)
