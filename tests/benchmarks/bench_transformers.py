"""Seconds and memory of analysis and pass on transformers, against Torch-Pruning where it works, and growth with depth.

Every case gets a fresh process and one thread. On the meta device there are no weights: analysis and a random plan.
The exponent is the slope of log(seconds) over log(layers): 1 is proportional.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import in_fresh_process, seconds, table
from tests.support import torchvision

RATIO = 0.3
CASES = ("vit_b_16", "vit_l_16", "swin_b", "bert-large", "llama-1024x8", "llama-1024x16", "llama-1024x32")
DEPTHS = (4, 8, 16, 32, 64)
META = "llama-4096x{}"


def build(name: str) -> tuple[nn.Module, Any]:
    """A model and its input; "llama-WIDTHxLAYERS" is grouped-query attention of that width and depth."""
    torch.manual_seed(0)
    models = torchvision().models
    if name.startswith("llama"):
        import transformers

        width, layers = map(int, name.removeprefix("llama-").split("x"))
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 256,
            vocab_size=1000,
        )
        return transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(16)[None]}
    if name == "bert-large":
        import transformers

        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        return transformers.BertModel(transformers.BertConfig(**sizes)).eval(), {"input_ids": torch.arange(16)[None]}
    return models.get_model(name).eval(), torch.randn(1, 3, 224, 224)


def ours(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of `analyze` and of `transform`, the path, the share of elements that is left."""
    model, inputs = build(name)
    analysis = [seconds(lambda: fxprune.analyze(model, inputs)) for _ in range(rounds)]
    made: list[nn.Module] = []
    whole = []
    for _ in range(rounds):
        made.clear()
        whole.append(
            seconds(lambda: made.append(fxprune.transform(model, inputs, ratio=RATIO, importance="l1", verify=False)))
        )
    record = fxprune.record(made[0])
    before, after = record.params
    times = {"first": whole[0], "analyze": statistics.median(analysis), "transform": statistics.median(whole)}
    return {**times, "path": record.path, "left": after / before}


def theirs(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of Torch-Pruning: its graph and one step; queries, keys and values are kept out by hand for llamas."""
    import torch_pruning

    model, inputs = build(name)
    before = sum(p.numel() for p in model.parameters())
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    out = {"lm_head", *(n for n in linears if n.endswith(("q_proj", "k_proj", "v_proj")))}
    ignored = [m for n, m in linears.items() if n in out] if "llama" in name else [list(linears.values())[-1]]
    options: dict[str, Any] = {"ignored_layers": ignored}
    if name.startswith("vit"):
        options["num_heads"] = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}

    def step() -> None:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=RATIO,
            forward_fn=(lambda m, given: m(**given).last_hidden_state if "bert" in name else m(**given).logits)
            if isinstance(inputs, dict)
            else None,
            **options,
        )
        pruner.step()

    first = seconds(step)
    with torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return {"first": first, "left": sum(p.numel() for p in model.parameters()) / before}


def on_meta(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of analysis and plan without weights, and by how much the process grew, in MiB."""
    build("llama-256x1")
    with torch.device("meta"):
        model, inputs = build(name)
    inputs = {key: torch.empty_like(value, device="meta") for key, value in inputs.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [
        seconds(lambda: fxprune.analyze(model, inputs).plan(ratio=RATIO, importance="random", seed=0))
        for _ in range(rounds)
    ]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(times), "grown": grown, "elements": sum(p.numel() for p in model.parameters())}


def attempt(kind: str, name: str, rounds: int) -> dict[str, Any]:
    """One measurement in a fresh process; why it failed, if it did."""
    try:
        return dict(in_fresh_process("tests.benchmarks.bench_transformers", "--one", kind, name, "--rounds", rounds))
    except (RuntimeError, subprocess.SubprocessError) as error:
        return {"failed": str(error).strip().splitlines()[-1][:120]}


def measure(names: Sequence[str] = CASES, depths: Sequence[int] = DEPTHS, rounds: int = 3) -> str:
    """Two tables: the pass against Torch-Pruning, and growth with depth."""
    rows = []
    for name in names:
        mine, peer = attempt("ours", name, rounds), attempt("theirs", name, 1)
        own = [mine.get(k, "fails") for k in ("analyze", "transform", "first", "path")]
        left = f"{mine['left']:.1%}" if "left" in mine else mine["failed"]
        times = peer["first"] / mine["first"] if "first" in mine and "first" in peer else ""
        shown = f"{peer['first']:.2f}" if "first" in peer else peer["failed"]
        rows.append((name, *own, left, shown, times))
    headers = ("model", "analyze (s)", "transform (s)", "first call (s)", "path", "elements left")
    first = table((*headers, "torch-pruning, first call (s)", "times faster"), rows)
    rows = []
    for depth in depths:
        made = attempt("meta", META.format(depth), rounds)
        rows.append((depth, made["elements"] / 1e9, made["seconds"], 1000 * made["seconds"] / depth, made["grown"]))
    low, high = rows[0], rows[-1]
    slope = math.log(high[2] / low[2]) / math.log(high[0] / low[0])
    headers = ("layers", "parameters (1e9)", "analysis and plan (s)", "ms per layer", "memory grows by (MiB)")
    return f"{first}\n\n{table(headers, rows)}\n\nFrom {low[0]} to {high[0]} layers the exponent is {slope:.2f}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "NAME"), help="one measurement, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.one:
        kinds: dict[str, Callable[[str, int], dict[str, Any]]] = {"ours": ours, "theirs": theirs, "meta": on_meta}
        print(json.dumps(kinds[options.one[0]](options.one[1], options.rounds)))
    else:
        print(measure(options.names, rounds=options.rounds))


if __name__ == "__main__":
    main()
