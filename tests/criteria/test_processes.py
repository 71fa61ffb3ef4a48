"""Two processes with a half of the data each give the scores of one process with all of it."""

from __future__ import annotations

import inspect

import torch
from torch import distributed, nn

import fxprune
from fxprune.criteria import MEASURED
from fxprune.criteria.from_data import takes_loss
from tests.processes import run_together

SHARED = [name for name, made in MEASURED.items() if "process_group" in inspect.signature(made).parameters]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def compare(rank: int) -> None:
    """Compare the scores of two processes with those of one alone, in a process of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 4)),
    ).eval()
    data = [(torch.randn(4, 3, 6, 6), torch.randint(4, (4,))) for _ in range(6)]
    group = fxprune.analyze(net, data[0][0]).groups[0]
    for name in SHARED:
        options = {} if takes_loss(name) is None else {"loss": loss}
        batches = data if options else [x for x, _ in data]
        alone = MEASURED[name](net, batches, **options)
        own = batches[4 * rank : 4 + 2 * rank]
        both = MEASURED[name](net, own, process_group=distributed.group.WORLD, **options)
        assert torch.allclose(both(group), alone(group), rtol=1e-5), name


def test_two_processes_score_as_one() -> None:
    assert len(SHARED) > 5
    run_together(compare, 2)
