"""The memory of a process while a model on disk is pruned, as the system counts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import nn

LAYERS, WIDTH = 24, 1024
WEIGHT = WIDTH * WIDTH * 4
"""The bytes of a weight in float32."""

SCRIPT = """
import ctypes, sys, torch, accelerate, fxprune
from pathlib import Path
from torch import nn
from tests.offloaded.test_memory import LAYERS, WIDTH, layers, now

ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
folder = Path(sys.argv[1])
first = accelerate.disk_offload(layers(2, 8).eval(), str(folder / "first"), "cpu")
fxprune.transform(first, torch.randn(1, 8), ratio=0.5)  # what is imported and made once
with torch.device("meta"):
    model = layers(LAYERS, WIDTH).eval()
for name, tensor in model.state_dict().items():
    accelerate.utils.offload_state_dict(str(folder / "off"), {name: torch.randn(tensor.shape)})
index = {name: {"dtype": "float32", "shape": list(t.shape)} for name, t in model.state_dict().items()}
model = accelerate.dispatch_model(model, {"": "disk"}, "cpu", offload_dir=str(folder / "off"), offload_index=index)
before = now("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
small = fxprune.transform(model, torch.randn(1, WIDTH), ratio=0.5)
print(now("VmHWM") - before, small[1][0].out_features)
"""


def layers(count: int, width: int) -> nn.Sequential:
    parts = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(count)]
    return nn.Sequential(*parts, nn.Linear(width, 4))


def now(key: str) -> int:
    """A figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(key))) * 1024


def test_a_process_grows_by_a_few_weights_and_not_by_the_model(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, width = map(int, done.stdout.split())
    print(f"{grown / WEIGHT:.1f} weights")
    assert width == WIDTH // 2
    assert grown < 12 * WEIGHT  # the model has 24
