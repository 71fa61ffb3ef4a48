"""Random weights on the command line, where --weights was forgotten."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.cli import main
from fxprune.cli.random_numbers import watched
from tests.cli import models
from tests.support import torchvision

NET = ("tests.cli.models:net", "--input", "2x3x8x8")
SEEM = "warning: the weights of {} seem to be random: numbers were drawn when it was made, and no state_dict was loaded"


def printed(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("prune", *NET, "-r", "0.5", "-o", "small.safetensors", "-q"), True),
        (("prune", "tests.cli.models:by_numpy", "--input", "2x4", "-r", "0.5", "-o", "small.safetensors"), True),
        (("export", *NET, "-o", "net.pt2", "-q"), True),
        (("sensitivity", *NET, "--score", "tests.cli.models:size", "--ratios", "0.5", "-q"), True),
        (("pareto", *NET, "--score", "tests.cli.models:size", "--budgets", "0.5", "-q"), True),
        (("inspect", *NET), False),
        (("prune", *NET, "-r", "0.5", "-o", "small.safetensors", "--seed", "0"), False),
        (("prune", *NET, "-r", "0.5", "-o", "small.safetensors", "--weights", "net.pt"), False),
        (("prune", "tests.cli.models:loaded", *NET[1:], "-r", "0.5", "-o", "small.safetensors"), False),
        (("prune", "tests.cli.models:constant", "--input", "2x4", "-r", "0.5", "-o", "small.safetensors"), False),
    ],
)
def test_a_result_of_random_weights_is_warned_of(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(models.net().state_dict(), "net.pt")
    load = nn.Module.load_state_dict
    err = printed(capsys, *words)
    assert (SEEM.format(words[1]) in err) == told
    assert ("--weights FILE loads others, --seed 0 says that they are meant" in err) == told
    assert nn.Module.load_state_dict is load


def test_a_small_model_in_a_file_has_its_own_weights(tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    assert "seem to be random" in printed(capsys, "prune", *NET, "-r", "0.5", "-o", small)
    assert "random" not in printed(capsys, "export", *NET, small, "-o", tmp_path / "small.pt2")


def test_a_library_is_known_to_make_random_weights(tmp_path, capsys):
    torchvision()
    words = ("torchvision:squeezenet1_1", "-i", "1x3x64x64", "--arg", "num_classes=7")
    text = "the weights of torchvision:squeezenet1_1 are random (seed 0); --weights FILE loads others"
    out = ("-r", "0.5", "-o", tmp_path / "small.safetensors", "--no-verify")
    assert f"warning: {text}, --seed 0 says that they are meant\n" in printed(capsys, "prune", *words, *out)
    assert f"\n{text}\n" in printed(capsys, "prune", *words, *out, "--seed", "0")


def test_weights_of_any_global_generator_are_the_same_again(tmp_path, capsys):
    for name in ("net", "by_numpy", "by_python"):
        words = (f"tests.cli.models:{name}", "--input", "2x3x8x8" if name == "net" else "2x4", "-q")
        assert main(["prune", *words, "-r", "0.5", "-o", str(tmp_path / "small.safetensors"), "--seed", "3"]) == 0
        capsys.readouterr()
        assert main(["verify", *words, str(tmp_path / "small.safetensors"), "--seed", "3"]) == 0
        assert "other weights" not in capsys.readouterr().err


def test_numbers_drawn_on_a_device_are_noticed(monkeypatch):
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]  # stand in for those of a device
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    for initialized in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda known=initialized: known)
        generators[1].manual_seed(7)  # a seed alone draws nothing
        with watched() as drawn:
            assert not drawn()
            torch.randn(3, generator=generators[1])
            assert drawn() is initialized
