"""The memory of a process while a model on disk is pruned and repaired, as the system counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import fxprune
from tests.offloaded.nets import Block
from tests.processes import run_together

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux resets and tells the peak, in /proc"
)

MB = 1 << 20


def on_disk(blocks: int, width: int, folder: Path) -> nn.Module:
    """A model that was never whole in memory."""
    with torch.device("meta"):
        model = nn.Sequential(*(Block(width, width) for _ in range(blocks)), nn.Linear(width, 4)).eval()
    index: dict[str, Any] = {}
    folder.mkdir()
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        values = torch.ones(tensor.shape) if "norm.weight" in name else torch.randn(tensor.shape) / width**0.5
        index = accelerate.utils.offload_weight(values, name, str(folder), index)
    accelerate.utils.save_offload_index(index, str(folder))
    made: nn.Module = accelerate.dispatch_model(model, {"": "disk"}, "cpu", offload_dir=str(folder))
    return made


def now(key: str) -> int:
    """A figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(key))) * 1024


def grown(model: nn.Module, width: int, *, repairs: bool) -> list[int]:
    """The bytes by which a process grows at most while it prunes a model, and while it repairs it."""
    batches, found = [torch.randn(4, width) for _ in range(10)], []
    small = model

    def measured(work: Any) -> Any:
        before = now("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        made = work()
        found.append(now("VmHWM") - before)
        return made

    small = measured(lambda: fxprune.transform(model, batches[0], ratio=0.5))
    if repairs:
        made = measured(lambda: fxprune.repair(small, model, batches, memory=4 * width * width * 4, progress=False))
        done = fxprune.record(made).repair
        assert done is not None
        assert done.after < done.before
    return found


def measured_apart(rank: int, folder: Path, blocks: int, width: int, repairs: bool) -> list[int]:
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
    grown(on_disk(2, 16, folder / "first"), 16, repairs=repairs)  # what is imported and made once
    return grown(on_disk(blocks, width, folder / "second"), width, repairs=repairs)


@pytest.mark.parametrize(
    ("blocks", "width", "repairs"), [(32, 512, False), pytest.param(75, 1024, True, marks=pytest.mark.slow)]
)
def test_a_process_grows_by_a_few_weights_and_not_by_the_model(
    tmp_path: Path, blocks: int, width: int, repairs: bool
) -> None:
    """In a repair the sums and the regression of one layer are about 16 matrices of its size, in float64."""
    (found,) = run_together(measured_apart, 1, tmp_path, blocks, width, repairs, seconds=900)
    block = 2 * width * width * 4
    print(f"a model of {blocks * block / MB:.0f} MB: " + ", ".join(f"{each / MB:.0f} MB" for each in found))
    assert found[0] < 12 * block
    assert found[-1] < 20 * block
