"""The memory of a run, as the operating system measures it, does not grow with the checkpoint or its tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fxprune

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux resets and tells the peak, in /proc"
)

ROWS = COLUMNS = 6000

_MEASURED = """
import sys, torch
import fxprune
def pages(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
with torch.device("meta"):
    model = torch.nn.Sequential(torch.nn.Linear(8, SIZE), torch.nn.ReLU(), torch.nn.Linear(SIZE, SIZE))
plan = fxprune.Plan.load(sys.argv[2])
before = pages("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets the peak
fxprune.stream(sys.argv[1], plan, sys.argv[3] + "/small", model=model, progress=False, workers=1)
print(pages("VmHWM") - before)
"""


def test_a_worker_holds_some_blocks_whatever_the_size_of_a_tensor(tmp_path: Path) -> None:
    layers = torch.nn.Linear(8, ROWS), torch.nn.ReLU(), torch.nn.Linear(ROWS, COLUMNS)
    model = torch.nn.Sequential(*layers)
    size = ROWS * COLUMNS * 4
    (tmp_path / "large").mkdir()
    save_file(model.state_dict(), tmp_path / "large" / "model.safetensors")
    small = fxprune.transform(model, torch.randn(1, 8), ratio=0.5, verify=False, importance="random", seed=0)
    fxprune.record(small).plan.save(tmp_path / "plan.json")
    words = [sys.executable, "-c", _MEASURED.replace("SIZE", str(ROWS)), tmp_path / "large", tmp_path / "plan.json"]
    done = subprocess.run([*map(str, words), str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < size // 2  # a whole tensor would be twice as much
