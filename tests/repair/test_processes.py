"""Two processes with a half of the data each give the repair of one process with all of it."""

from __future__ import annotations

import torch
from torch import distributed, nn

import fxprune
from tests.processes import run_together


def compare(rank: int) -> None:
    """Compare the repair of two processes with that of one alone, in a process of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.Flatten()).eval()
    data = [torch.randn(8, 3, 6, 6) for _ in range(10)]
    small = fxprune.transform(net, data[0], ratio=0.5)
    own = data[5 * rank : 5 * rank + 5]
    for mode in ("weights", "bias", "norms"):
        alone = fxprune.repair(small, net, data, mode=mode)
        both = fxprune.repair(small, net, own, mode=mode, process_group=distributed.group.WORLD)
        for name, tensor in both.state_dict().items():
            assert torch.allclose(tensor, alone.state_dict()[name], rtol=1e-5, atol=1e-6), (mode, name)
        after = [fxprune.record(one).repair.after for one in (alone, both)]
        assert abs(after[0] - after[1]) < 1e-6 * after[0]
    together = fxprune.repair(small, net, own, mode="outputs", steps=5, process_group=distributed.group.WORLD)
    for tensor in together.state_dict().values():
        found = [torch.empty_like(tensor), torch.empty_like(tensor)]
        distributed.all_gather(found, tensor)
        assert torch.equal(*found)


def test_two_processes_repair_as_one() -> None:
    run_together(compare, 2)
