"""`summary(quality=)`: divergence, agreement and perplexity of predictions, against numbers by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Words(nn.Module):
    """A language model: the logits of the next word follow from the last one alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.table(input_ids)
        return made


def words(seed: int) -> Words:
    torch.manual_seed(seed)
    return Words(torch.randn(12, 12)).eval()


IDS = torch.arange(40).view(4, 10) * 7 % 12


def test_numbers_are_those_of_their_definitions() -> None:
    big, small = words(0), words(1)
    found = fxprune.summary(big, small, IDS, quality=[IDS[:1], IDS[1:]], rounds=0).quality
    assert found is not None
    p, q = (model(IDS).double().softmax(-1).flatten(0, 1) for model in (big, small))
    assert found.predictions == 40
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
    for k in (1, 5, 10):
        best = [({*a.topk(k).indices.tolist()}, {*b.topk(k).indices.tolist()}) for a, b in zip(p, q, strict=True)]
        assert found.agreement[k] == pytest.approx(sum(len(a & b) / k for a, b in best) / 40)
    losses = [-float(part.view(4, 10, 12)[:, :-1].gather(-1, IDS[:, 1:, None]).log().mean()) for part in (p, q)]
    assert found.perplexity == pytest.approx(math.exp(losses[1]) / math.exp(losses[0]))


def test_a_model_beside_itself() -> None:
    found = fxprune.summary(words(0), words(0), IDS, quality=[IDS], rounds=0)
    assert found.quality == fxprune.Quality(40, 0.0, {1: 1.0, 5: 1.0, 10: 1.0}, 1.0)
    lines = found.report().splitlines()
    assert [line.split() for line in lines[-5:]] == [
        ["KL", "divergence", "0"],
        ["top-1", "agreement", "100.0%"],
        ["top-5", "agreement", "100.0%"],
        ["top-10", "agreement", "100.0%"],
        ["perplexity,", "ratio", "1"],
    ]
    assert json.loads(found.report("json"))["quality"]["agreement"]["5"] == 1.0


def test_padding_does_not_count() -> None:
    mask = torch.ones_like(IDS)
    mask[:, 6:] = 0
    one: Any = {"input_ids": IDS, "attention_mask": mask}
    found = [fxprune.summary(words(0), words(1), IDS, quality=[given], rounds=0).quality for given in (one, IDS[:, :6])]
    assert found[0] == found[1]


def test_classes_of_images_have_no_perplexity_and_modes_stay() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 7), nn.Dropout()), nn.Sequential(nn.Linear(6, 7))]
    found = fxprune.summary(nets[0], nets[1], torch.zeros(1, 6), quality=[torch.randn(5, 6)], rounds=0).quality
    assert found is not None
    assert (found.predictions, {*found.agreement}, found.perplexity) == (5, {1, 5}, None)
    assert found.divergence > 0
    assert all(module.training for net in nets for module in net.modules())


def test_results_without_classes_are_refused() -> None:
    with pytest.raises(fxprune.InputError, match="the result has no logits"):
        fxprune.summary(nn.Linear(3, 1), nn.Linear(3, 1), torch.zeros(1, 3), quality=[torch.zeros(2, 3)], rounds=0)
    with pytest.raises(fxprune.InputError, match="other classes"):
        fxprune.summary(nn.Linear(3, 4), nn.Linear(3, 5), torch.zeros(1, 3), quality=[torch.zeros(2, 3)], rounds=0)
