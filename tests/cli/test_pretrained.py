"""Models in a directory that `save_pretrained` wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.cli import main
from fxprune.cli.models import build
from fxprune.errors import FxpruneError
from tests.support import torchvision

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torchvision()  # which transformers imports
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    path = tmp_path_factory.mktemp("bert")
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **sizes)).save_pretrained(path)
    return str(path)


def test_the_class_is_that_of_the_config(folder):
    import transformers

    made, random = build(folder, {})
    again = transformers.BertForMaskedLM.from_pretrained(folder)
    assert type(made) is transformers.BertForMaskedLM
    assert not random
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())


def test_it_is_pruned_and_verified(folder, tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    words = [folder, "--input", "input_ids=1x8:int64<50"]
    assert main(["prune", *words, "--keep", "params=0.7", "-o", small, "-q"]) == 0
    assert main(["verify", *words, small, "-q"]) == 0
    assert "right" in capsys.readouterr().out


def test_a_small_model_of_fxprune_is_loaded_as_one(folder, tmp_path):
    model, _ = build(folder, {})
    ids = {"input_ids": torch.arange(8)[None]}
    counts = {"bert.encoder.layer.0.intermediate.dense": 20}
    small = fxprune.transform(model, ids, counts=counts)
    small.save_pretrained(tmp_path)
    loaded, _ = build(str(tmp_path), {})
    assert fxprune.record(loaded).removed == fxprune.record(small).removed


IDS = ["--input", "input_ids=1x8:int64<50"]


def test_uniform_config_writes_a_directory_that_the_library_loads(folder, tmp_path, capsys):
    import transformers

    words = ["prune", folder, *IDS, "--keep", "params=0.7", "--uniform", "config", "-q"]
    assert main([*words, "-o", str(tmp_path / "small")]) == 0
    assert not list(tmp_path.glob(".*"))
    small = transformers.BertForMaskedLM.from_pretrained(tmp_path / "small")
    assert small.config.intermediate_size < 48
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "small")]) == 1
    assert "a directory is written whole, so it must be new" in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "other"), "--uniform", "bert.encoder.layer.*"]) == 2
    assert "--uniform config stands alone" in capsys.readouterr().err


def test_a_plan_or_layers_that_go_take_the_config_too(folder, tmp_path, capsys):
    import transformers

    words = ["prune", folder, *IDS, "--uniform", "config", "-q", "-o"]
    drop, plan = ["--drop", "bert.encoder.layer.1"], str(tmp_path / "plan.json")
    assert main([*words, str(tmp_path / "one"), *drop, "--save-plan", plan]) == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "one").num_hidden_layers == 1
    assert main([*words, str(tmp_path / "two"), "--plan", plan]) == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "two").num_hidden_layers == 1


@pytest.mark.parametrize("option", [["--prefer", "graph"], ["--path", "export"]])
def test_a_graph_in_a_directory_is_refused_before_any_work(option, folder, tmp_path, capsys):
    words = ["prune", folder, *IDS, "--ratio", "0.5", *option, "-o", str(tmp_path / "small")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "making" not in told
    assert f"{' '.join(option)} asks for a graph, which has no save_pretrained" in told
    assert "do   say --prefer class, or end it in .safetensors" in told


def test_a_plan_for_a_graph_does_not_fit_a_directory(folder, tmp_path, capsys):
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    plan = fxprune.analyze(net.eval(), torch.randn(2, 3), path="export").plan(ratio=0.5)
    plan.save(tmp_path / "plan.json")
    words = ["prune", folder, *IDS, "--plan", str(tmp_path / "plan.json"), "-o", str(tmp_path / "small")]
    assert main(words) == 2
    assert "a plan made on the path export, asks for a graph" in capsys.readouterr().err


def test_a_model_that_becomes_a_graph_is_refused_before_its_repair(folder, tmp_path, capsys, monkeypatch):
    def becomes_a_graph(*arguments, **options):
        text = 'the result is a graph, no BertForMaskedLM: the class would lose 0. With `prefer="class"` it stays'
        warnings.warn(text, fxprune.ClassLostWarning, stacklevel=1)
        raise AssertionError("the repair begins")

    monkeypatch.setattr(fxprune, "transform", becomes_a_graph)
    words = ["prune", folder, *IDS, "--ratio", "0.5", "-o", str(tmp_path / "small")]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "the result is a graph, no BertForMaskedLM: the class would lose 0\n" in told
    assert "do   add --prefer class, or end it in .safetensors" in told


def test_a_directory_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    import transformers

    def fails(self, directory, **_):
        Path(directory).mkdir(parents=True)
        (Path(directory) / "config.json").touch()
        raise OSError("the disk is full")

    words = ["prune", folder, *IDS, "--keep", "params=0.7", "-q", "-o"]
    assert main([*words, str(tmp_path / "own")]) == 0
    assert 'from_pretrained(\\"own\\")' in (tmp_path / "own" / "config.json").read_text()
    monkeypatch.setattr(transformers.BertForMaskedLM, "save_pretrained", fails)
    assert main([*words, str(tmp_path / "small"), "--uniform", "config"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "it holds a list"),
        ('{"architectures": ["NoSuchModel"]}', "NoSuchModel"),
        ('{"architectures": [7]}', "names no model"),
        ("{}", "names no model"),
        (json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}), "transformers cannot load"),
    ],
)
def test_other_configs_are_refused(folder, text, words, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FxpruneError, match=words):
        build(str(tmp_path), {})
