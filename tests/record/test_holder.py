"""The record stays with a small model: in deep copies, in pickles, and in pickles that are read without fxprune."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fxprune
from fxprune._record.holder import record_from, text_of

WITHOUT_FXPRUNE = """
import sys, torch
sys.modules["fxprune"] = None  # an import of it fails
model = torch.load(sys.argv[1], weights_only=False)
print(type(model).__name__, tuple(model(torch.ones(2, 8)).shape))
"""


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()


def small_of(path, **options):
    return fxprune.transform(net(), torch.randn(2, 8), path=path, **options or {"ratio": 0.5})


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def unpickled(data):
    return torch.load(io.BytesIO(data), weights_only=False)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda m: unpickled(pickled(m)),
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: copy.deepcopy(unpickled(pickled(m))),
        lambda m: unpickled(pickled(copy.deepcopy(m))),
        lambda m: copy.deepcopy(copy.deepcopy(unpickled(pickled(copy.deepcopy(m))))),
    ],
)
def test_a_copy_and_a_pickle_keep_the_record(path, again):
    small = small_of(path)
    other = again(small)
    assert fxprune.record(other) == fxprune.record(small)
    assert torch.equal(other(torch.ones(2, 8)), small(torch.ones(2, 8)))


def test_deep_copies_share_the_record():
    small = small_of("eager")
    assert fxprune.record(copy.deepcopy(small)) is fxprune.record(small)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_a_pickle_loads_where_fxprune_is_not_installed(path, tmp_path):
    data = pickled(small_of(path))
    assert b"fxprune." not in data
    (tmp_path / "small.pt").write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_FXPRUNE, str(tmp_path / "small.pt")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.endswith("(2, 3)\n")


def test_a_pickle_names_fxprune_where_one_of_its_layers_is_in_the_model():
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)).eval()
    small = fxprune.transform(model, torch.randn(2, 8), ratio=0.5, path="eager", norms="preserve")
    data = pickled(small)
    assert b"fxprune.rewrite.norm_layers" in data
    assert fxprune.record(unpickled(data)) == fxprune.record(small)


def test_what_was_read_reports_verifies_joins_and_saves(tmp_path):
    torch.manual_seed(1)
    model, x = net(), torch.randn(2, 8)
    first = unpickled(pickled(fxprune.transform(model, x, ratio=0.25, path="eager")))
    made = fxprune.record(first)
    assert "16 -> 12" in made.report() or "12" in made.report()
    assert fxprune.verify(model, first, x) < 1e-12
    second = fxprune.transform(first, x, ratio=0.25, path="eager")
    both = made.then(fxprune.record(second))
    assert len(both.removed["0.bias"][0]) == 7
    fxprune.save(first, tmp_path / "small.safetensors")
    assert torch.equal(fxprune.load(tmp_path / "small.safetensors", into=net())(x), first(x))


def test_a_record_of_folded_constants_is_read_as_it_was_written():
    model = net()
    with torch.no_grad():
        model[0].weight[:4] = 0
    small = fxprune.transform(model, torch.randn(2, 8), masks="zeros", path="eager")
    made = fxprune.record(small)
    assert made.removed
    assert made.zeroed != made.removed
    assert record_from(text_of(made)) == made


def test_weights_alone_load_as_before():
    small = small_of("eager")
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == list(small.state_dict())


def test_a_record_of_another_version_is_refused():
    data = json.loads(text_of(fxprune.record(small_of("eager"))))
    with pytest.raises(fxprune.FxpruneError, match="reads version 1"):
        record_from(json.dumps({**data, "version": 2}))


def test_a_text_that_is_no_record_is_refused():
    small = small_of("eager")
    small.__dict__["fxprune_record"] = "nothing"
    with pytest.raises(fxprune.FxpruneError, match="the record in this model is not what it should be"):
        fxprune.record(small)


class Around(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.head(self.body(x))


def test_a_pruned_module_inside_a_model_that_is_pruned_again_loses_its_old_record(monkeypatch):
    body, x = small_of("eager"), torch.randn(2, 8)
    again = fxprune.transform(Around(body), x, ratio=0.5, path="eager")
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(fxprune.FxpruneError, match=r"has no record\n.*\n.*as a whole: a module in it has none$"):
        fxprune.record(again.body)
    assert fxprune.record(body).after["0.weight"] == (8, 8)


def test_a_pruned_module_inside_a_model_keeps_its_record_where_nothing_of_it_is_removed():
    body, x = small_of("eager"), torch.randn(2, 8)
    again = fxprune.transform(Around(body), x, ratio={"head.*": 0.5}, path="eager")
    assert again.head[0].out_features == 4
    assert fxprune.record(again.body) == fxprune.record(body)
