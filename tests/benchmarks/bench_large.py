"""Plans of large language models without their weights: seconds of processor time and memory, each model alone.

The models are built on the meta device. The four steps are `analyze`, `analysis.plan(keep={"params": 0.6})`,
`analysis.cost(plan)` and `analysis.transform(plan)`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

import fxprune
from tests.benchmarks.common import in_fresh_process, table
from tests.support import torchvision

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128256}
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "Llama 8B": (
        "Llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32} | LLAMA,
    ),
    "Llama 70B": (
        "Llama",
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64} | LLAMA,
    ),
    "Llama 405B": (
        "Llama",
        {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
        | LLAMA,
    ),
    "Mixtral 8x7B": (
        "Mixtral",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8},
    ),
    "Qwen3-MoE 30B, 128 experts": (
        "Qwen3Moe",
        {"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32}
        | {"num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8},
    ),
}
"""Name -> the class of transformers without its ending, and the sizes in its config."""


def plan_of(name: str) -> dict[str, Any]:
    """The seconds of processor time of each step, the parameters before and after, and the peak memory in GB."""
    torchvision()  # which transformers imports
    import transformers

    kind, sizes = MODELS[name]
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
        inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}
    before, found = _memory(), dict[str, Any]()

    def timed(step: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = function()
        found[step] = time.process_time() - start
        return made

    analysis = timed("analyze", lambda: fxprune.analyze(model, inputs))
    plan = timed("plan", lambda: analysis.plan(keep={"params": 0.6}, importance="random", seed=0))
    after = timed("cost", lambda: analysis.cost(plan))
    timed("transform", lambda: analysis.transform(plan))
    return {**found, "params": [analysis.cost().params, after.params], "before": before, "memory": _memory()}


def _memory() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(names: Sequence[str] = tuple(MODELS)) -> str:
    """The table."""
    rows = []
    for name in names:
        found = in_fresh_process("tests.benchmarks.bench_large", "--one", name)
        steps = [found[step] for step in ("analyze", "plan", "cost", "transform")]
        params = "{:.1f} -> {:.1f}".format(*(number / 1e9 for number in found["params"]))
        rows.append((name, params, *steps, sum(steps), found["memory"], found["before"]))
    headers = ("model", "parameters (1e9)", "analyze (s)", "plan (s)", "cost (s)", "transform (s)", "all four (s)")
    return table((*headers, "peak (GB)", "of it before (GB)"), rows, ("", "", *[".1f"] * 5, ".2f", ".2f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=tuple(MODELS))
    parser.add_argument("--one", choices=MODELS, help="measure one model in this process")
    options = parser.parse_args(arguments)
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(plan_of(options.one)))
    else:
        print(measure(options.names))


if __name__ == "__main__":
    main()
