"""The command `stream`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.cli import main
from tests.streaming.checkpoints import loaded, model_of, pruned, same_bits, saved

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here


def test_the_command_writes_what_from_pretrained_loads(tmp_path: Path, capsys: Any) -> None:
    model = saved(model_of("Llama", torch.bfloat16), tmp_path / "large")
    small, plan = pruned(model, ratio=0.5, uniform="config")
    plan.save(tmp_path / "plan.json")
    words = ["stream", str(tmp_path / "large"), "--plan", str(tmp_path / "plan.json"), "-o", str(tmp_path / "small")]
    assert main([*words, "--json", "--shard-size", "8 kB"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["schema"] == "fxprune.stream/1"
    assert found["config_says_it"]
    assert "%" not in printed.err  # no bar in a pipe
    assert same_bits(small, loaded(type(model), tmp_path / "small", config_says_it=True))
    assert main(words) == 1
    assert "holds weights already" in capsys.readouterr().err
