"""The proof tried on small networks that were made wrong, and the helper that does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.proof.compare import prove
from tests.mutations import unseen_mutations
from tests.support import call, randomise


class Dead(nn.Module):
    """A layer of which nothing reaches the output, and one of which all does."""

    def __init__(self, *, dead: bool) -> None:
        super().__init__()
        self.a, self.b, self.dead = nn.Linear(5, 9), nn.Linear(9, 3), dead

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.zeros_like(h).masked_fill(h > 1e9, 1.0) if self.dead else h)


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [call(model, inputs)]


def network(dead: bool) -> tuple[nn.Module, Tensor]:
    return randomise(Dead(dead=dead).double().eval(), 0), torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("path", ["eager", "fx"])
@pytest.mark.parametrize("dead", [False, True])
def test_the_proof_sees_changes_that_no_result_shows(dead: bool, path: str) -> None:
    tried = unseen_mutations(*network(dead), run, each=4, path=path)
    assert len(tried.tried) == 4 + 3  # "a.weight", "a.bias" and "b.weight" lose slots
    assert tried.unseen == ()
    assert all(dead and text.startswith("b.weight") for text in tried.without_effect)  # what it reads are zeros


def test_a_proof_that_sees_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(findings: Any, small: nn.Module, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("fxprune.proof.one_round.relative_error", lambda ours, theirs: 0.0)
            patched.setattr("fxprune.proof.judgement.Judgement.suspects", lambda self: iter(()))
            return prove(findings, small, *args, **options)

    monkeypatch.setattr("fxprune._attempt.prove", blind)
    tried = unseen_mutations(*network(False), run, each=4)
    assert [text.partition(": the results")[0] for text in tried.unseen] == list(tried.tried)
    tried = unseen_mutations(*network(True), run, each=4)
    assert any(text.startswith("a.weight") for text in tried.without_effect)
    assert any(text.startswith("b.bias") for text in tried.unseen)
