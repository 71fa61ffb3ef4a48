"""Models in a directory that `save_pretrained` wrote."""

from __future__ import annotations

import json

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
