"""Whole experts of a tiny mixture that is trained on the spot: which criterion keeps most, with and without a repair.

The language has four topics of its own grammar, so that experts specialise. The model has 2 layers of 16 experts, of
which each token gets 2. `loss` is the mean over seeds of the cross entropy on other texts.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fxprune
from tests.benchmarks.common import table
from tests.support import torchvision

WORDS, TOPICS, LENGTH, EXPERTS = 64, 4, 24, 16
CRITERIA = ("random", "l2", "expert_frequency", "reap")


def texts(count: int, generator: torch.Generator, grammar: Tensor) -> Tensor:
    """Random texts, each of one topic. grammar: [topics, words, words], which word follows which."""
    topic = torch.randint(TOPICS, (count,), generator=generator)
    words = [torch.randint(WORDS, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        words.append(torch.multinomial(grammar[topic, words[-1]], 1, generator=generator)[:, 0])
    return torch.stack(words, 1)


def loss(model: Any, ids: Tensor) -> Tensor:
    """The cross entropy of the next words."""
    return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def trained(seed: int, steps: int) -> tuple[Any, list[Tensor], Tensor]:
    """A mixture, texts to measure and repair on, and other texts."""
    torchvision()  # which transformers imports
    import transformers

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    grammar = (3 * torch.randn(TOPICS, WORDS, WORDS, generator=generator)).softmax(-1)
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": WORDS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, texts(32, generator, grammar)).backward()
        optimizer.step()
    return model.eval(), [texts(32, generator, grammar) for _ in range(8)], texts(512, generator, grammar)


def losses(seed: int, steps: int) -> dict[tuple[str, int, bool], float]:
    """The losses of one seed, by the criterion, the experts that stay, and whether the model was repaired."""
    model, data, other = trained(seed, steps)
    found: dict[tuple[str, int, bool], float] = {}
    analysis = fxprune.analyze(model, data[0])
    keys = fxprune.criteria.expert_frequency_importance(model, data).groups(analysis)
    with torch.no_grad():
        found["none", EXPERTS, False] = float(loss(model, other))
        for name in CRITERIA:
            given = {"data": data} if name in fxprune.criteria.MEASURED else {"seed": seed}
            for kept in (EXPERTS * 3 // 4, EXPERTS // 2):
                small = fxprune.transform(model, data[0], counts=dict.fromkeys(keys, kept), importance=name, **given)
                found[name, kept, False] = float(loss(small, other))
                found[name, kept, True] = float(loss(fxprune.repair(small, model, data), other))
    return found


def measure(seeds: int = 3, steps: int = 300) -> str:
    """The table."""
    torch.set_num_threads(1)
    runs = [losses(seed, steps) for seed in range(seeds)]
    rows = []
    for name, kept in dict.fromkeys((name, kept) for name, kept, _ in runs[0]):
        cells = [[run[name, kept, done] for run in runs if (name, kept, done) in run] for done in (False, True)]
        rows.append((name, f"{kept} of {EXPERTS}", *(statistics.mean(cell) if cell else "" for cell in cells)))
    return table(("criterion", "experts that stay", "loss", "loss after repair"), rows, ("", "", ".3f", ".3f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print(measure(options.seeds, options.steps))


if __name__ == "__main__":
    main()
