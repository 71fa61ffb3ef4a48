"""The cost of folding constants: seconds of `transform` with bias="fold" over those with bias="prune"."""

from __future__ import annotations

import functools

import fxprune
from tests.benchmarks.common import interleaved, median_ratio, model_and_input, table

MODELS = ("resnet50", "mobilenet_v3_large", "densenet121", "efficientnet_b0")
ROUNDS = 3


def measure() -> str:
    """A row for every model: both ways, and the ratio within a round."""
    rows = []
    for name in MODELS:
        model, x = model_and_input(name)
        ways = {
            bias: functools.partial(fxprune.transform, model, x, ratio=0.3, bias=bias) for bias in ("prune", "fold")
        }
        times = interleaved(ways, ROUNDS)
        both = [sorted(times[key])[ROUNDS // 2] for key in ("prune", "fold")]
        rows.append((name, *both, median_ratio(times["fold"], times["prune"])))
    return table(("model", "prune (s)", "fold (s)", "ratio"), rows)


if __name__ == "__main__":
    print(measure())
