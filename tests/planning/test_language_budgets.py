"""Budgets of language models: the cache that a call returns, the next token, the parameters that work for one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.costs import CacheBytes, Latency, active_params, cache_bytes, latency_table, peak_memory
from fxprune.costs.decoding import decoding
from fxprune.errors import CaptureError, PlanError
from fxprune.fold import resolve_plan
from fxprune.planning import figures
from tests.support import randomise

TOKENS = torch.arange(12).reshape(2, 6) % 9


class Cache:
    """Keys and values, one pair for each layer."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self.pairs):
            self.pairs.append((keys, values))
        else:
            old = self.pairs[layer]
            self.pairs[layer] = torch.cat([old[0], keys], 2), torch.cat([old[1], values], 2)
        return self.pairs[layer]


@dataclass
class Answer:
    """The result of a call."""

    scores: Tensor
    cache: Cache


class Attention(nn.Module):
    """Causal attention of two heads, with a cache."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.heads, self.width = number, 2, 8
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        k, v = cache.extended(self.number, k, v)
        made = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.out(made.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Four experts, of which a router chooses one for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 24)), nn.Parameter(torch.randn(4, 24, 16))
        self.shift = nn.Parameter(torch.randn(4, 24))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        hidden = torch.einsum("bth,btkhi->btki", x, self.up[chosen]) + self.shift[chosen]
        return (torch.einsum("btki,btkih->btkh", hidden.relu(), self.down[chosen]) * weights[..., None]).sum(2)


class Words(nn.Module):
    """A language model of two layers. chosen: how many experts work for a token; 0 for no experts."""

    def __init__(self, chosen: int = 0) -> None:
        super().__init__()
        self.chosen = chosen
        self.embed, self.head = nn.Embedding(9, 16), nn.Linear(16, 9)
        self.layers = nn.ModuleList(Attention(number) for number in range(2))
        if chosen:
            self.router, self.experts = nn.Linear(16, 4), Experts()

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Answer:
        cache = Cache() if cache is None else cache
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x, cache)
        if self.chosen:
            weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
            x = x + self.experts(x, chosen, weights)
        return Answer(self.head(x), cache)


def words(chosen: int = 0) -> Words:
    torch.manual_seed(0)
    model = Words(chosen).eval()
    randomise(model, 0)
    return model


def test_the_bytes_of_a_cache_are_those_of_its_tensors() -> None:
    model = words()
    pairs = model(TOKENS).cache.pairs
    assert cache_bytes(model, TOKENS) == sum(t.nbytes for pair in pairs for t in pair) == 2 * 2 * 2 * 6 * 16 * 4
    assert cache_bytes(model, TOKENS[:, :3]) == cache_bytes(model, TOKENS) // 2
    assert peak_memory(model, TOKENS) >= cache_bytes(model, TOKENS)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_the_cache_of_a_plan_is_that_of_the_small_model(ratio: float) -> None:
    model = words()
    analysis = fxprune.analyze(model, TOKENS)
    small = fxprune.transform(model, TOKENS, ratio=ratio)
    removal = resolve_plan(analysis, fxprune.record(small).plan).removal
    left = sum(t.nbytes for pair in small(TOKENS).cache.pairs for t in pair)
    assert CacheBytes(analysis).of(removal) == left == cache_bytes(small, TOKENS) < CacheBytes(analysis).full


@pytest.mark.parametrize("amount", [0.5, 0.75, "2 kB"])
def test_a_budget_of_the_cache_is_met_by_the_model_that_is_returned(amount: Any) -> None:
    model = words()
    small = fxprune.transform(model, TOKENS, keep={"cache": amount})
    limit = 2000 if isinstance(amount, str) else cache_bytes(model, TOKENS) * amount
    left = sum(t.nbytes for pair in small(TOKENS).cache.pairs for t in pair)
    assert 0.8 * limit <= left <= limit
    assert fxprune.record(small).measured == {"cache": (cache_bytes(model, TOKENS), left)}
    assert f"\ncache, bytes 3072 -> {left} (" in fxprune.record(small).report()


def test_a_budget_of_the_cache_takes_nothing_that_no_cache_holds() -> None:
    model = words(1)
    small = fxprune.transform(model, TOKENS, keep={"cache": 0.5})
    assert sum(layer.k.out_features + layer.v.out_features for layer in small.layers) == 32  # of 64
    assert (small.embed.embedding_dim, small.router.out_features, small.experts.up.shape) == (16, 4, (4, 16, 24))
    assert any('counts no channels of "embed"' in reason for reason in fxprune.record(small).reasons)
    both = fxprune.transform(model, TOKENS, keep={"cache": 0.5, "params": 0.5})
    assert both.embed.embedding_dim < 16


def test_the_parameters_for_one_token_are_those_of_the_chosen_experts() -> None:
    for chosen in (1, 2):
        model = words(chosen)
        stacks = sum(p.numel() for p in model.experts.parameters())
        whole = sum(p.numel() for p in model.parameters())
        assert active_params(model, TOKENS) == whole - stacks + stacks * chosen // 4


def test_a_budget_of_the_parameters_for_one_token_is_met() -> None:
    model = words(2)
    small = fxprune.transform(model, TOKENS, keep={"active_params": 0.6})
    before, after = fxprune.record(small).measured["active_params"]
    stacks = sum(p.numel() for p in small.experts.parameters())
    count = len(small.experts.up)
    assert after == sum(p.numel() for p in small.parameters()) - stacks + stacks * 2 // count
    assert 0.9 * 0.6 * before <= after <= 0.6 * before


def test_a_model_without_experts_has_no_parameters_for_one_token() -> None:
    with pytest.raises(PlanError, match="no experts that the analysis sees"):
        fxprune.transform(words(), TOKENS, keep={"active_params": 0.5})


def test_a_step_of_decoding_is_the_call_on_the_last_token() -> None:
    model = words()
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((*kwargs["tokens"].shape,))

    model.register_forward_pre_hook(note, with_kwargs=True)
    mask = torch.ones(2, 6)
    with decoding(model, ((), {"tokens": TOKENS, "mask": mask})) as step:
        first, second = step.call(), step.call()
    assert seen == [(2, 6), (2, 1), (2, 1)]
    assert second.cache.pairs[0][0].shape[2] == 8
    assert first.cache is second.cache


def test_a_budget_of_the_latency_of_decoding_is_measured_on_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(model: nn.Module, inputs: Any, runs: Any) -> float:
        with runs(model, inputs) as step:
            assert step.call().scores.shape == (2, 1, 9)
        return sum(p.numel() for p in model.parameters()) * 1e-6

    def watched(original: nn.Module, small: nn.Module, inputs: Any, runs: Any) -> Any:
        return seconds(original, inputs, runs), seconds(small, inputs, runs), {}

    def measured(models: list[nn.Module], inputs: Any, rounds: int, *, runs: Any) -> list[Latency]:
        return [Latency(seconds(model, ((inputs,), {}), runs), 0.0, 1, "cpu", 1) for model in models]

    monkeypatch.setattr(latency_table, "watched", watched)
    monkeypatch.setattr(figures, "measured_in_turn", measured)
    small = fxprune.transform(words(), TOKENS, keep={"decode_latency": 0.6}, latency_table=False)
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * sum(p.numel() for p in words().parameters())
    assert min(fxprune.record(small).measured["decode_latency"]) > 0
    assert any(reason.startswith("decode_latency: ") for reason in fxprune.record(small).reasons)
    assert "\ndecode latency " in fxprune.record(small).report()


@pytest.mark.parametrize(
    ("model", "x", "text"),
    [
        (nn.Linear(4, 4), torch.zeros(2, 4), "it returns no object with tensors"),
        (nn.Sequential(Words()), TOKENS, "it returns cache"),
    ],
)
def test_a_model_without_a_cache_cannot_decode(model: nn.Module, x: Tensor, text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        fxprune.transform(model.eval(), x, keep={"decode_latency": 0.5}, latency_table=False)


def test_a_schedule_takes_budgets_that_are_computed_only() -> None:
    model = words()
    with pytest.raises(PlanError, match="no budget of decode_latency"):
        fxprune.GradualPruner(model, TOKENS, keep={"decode_latency": 0.5})
    pruner = fxprune.GradualPruner(model, TOKENS, keep={"cache": 0.5}, steps=2)
    whole = cache_bytes(model, TOKENS)
    for _ in range(2):
        pruner.step()
    assert cache_bytes(pruner.model, TOKENS) <= whole / 2


def test_a_budget_of_a_cache_that_is_not_there_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    with pytest.raises(fxprune.PlanError, match=r"no cache to limit(.|\n)*use_cache=True"):
        fxprune.transform(model, torch.zeros(1, 4), keep={"cache": 0.5})
