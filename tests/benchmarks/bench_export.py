"""Sizes of exported files, and latencies in torch, compiled and in onnxruntime: original, small, and written by hand.

Half of every group goes, widths and numbers of heads are kept multiples of 8. All files are compared with their models
by `export`, and the small model with the one written by hand. Batch 1, float32, evaluation mode, the nine in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import fxprune
from fxprune.artifacts import export
from tests.benchmarks.bench_latency import by_hand
from tests.benchmarks.common import interleaved, median_ratio, model_and_input, table
from tests.support import relative_error, torchvision

NAMES = ("resnet50", "mobilenet_v3_large", "vit_b_16")
WAYS = ("eager", "torch.compile", "onnxruntime")


class Attention(nn.Module):
    """Self-attention written for heads whose width is not width / num_heads; no layer of torch can have such heads."""

    def __init__(self, narrow: Any) -> None:
        super().__init__()
        width, heads = narrow.embed_dim, narrow.num_heads
        self.heads, self.sizes = heads, [heads * narrow.head_dim, heads * narrow.head_dim, heads * narrow.v_head_dim]
        self.scale = narrow.scale
        self.qkv, self.out = nn.Linear(width, sum(self.sizes)), nn.Linear(self.sizes[2], width)
        self.qkv.load_state_dict({"weight": narrow.in_proj_weight, "bias": narrow.in_proj_bias})
        self.out.load_state_dict(narrow.out_proj.state_dict())

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        parts = self.qkv(x).split(self.sizes, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(y.transpose(1, 2).flatten(2)), None


def pruned(name: str, original: nn.Module, x: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    """The small model, and one written by hand at its widths with its weights."""
    small = fxprune.transform(original, x, ratio=0.5, round_to=8, importance="l1", verify=False)
    return small, vit_by_hand(small) if name.startswith("vit") else by_hand(original, small)


def vit_by_hand(small: nn.Module) -> nn.Module:
    """The class of torchvision at the widths of `small`, with an attention of its own."""
    layers = list(small.get_submodule("encoder.layers").children())
    first: Any = layers[0].get_submodule("mlp.0")
    hand: Any = torchvision().models.VisionTransformer(224, 16, len(layers), 1, first.in_features, first.out_features)
    for mine, theirs in zip(hand.encoder.layers, layers, strict=True):
        mine.self_attention = Attention(theirs.get_submodule("self_attention"))
    state = {key: t for key, t in small.state_dict().items() if ".self_attention." not in key}
    missing, unexpected = hand.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".self_attention." in key for key in missing)
    return hand.eval()


def session(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """An ONNX file in onnxruntime, on as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda x: torch.from_numpy(made.run(None, {name: x.numpy()})[0])


def compiled(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model through `torch.compile` as it is by default."""
    torch._dynamo.reset()
    made: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model)
    made(x)
    return made


def measure_one(name: str, rounds: int, folder: Path) -> tuple[list[object], list[tuple[object, ...]]]:
    """The sizes of the files, and one row of latencies for each way to run the model."""
    original, x = model_and_input(name, 1)
    if name.startswith("vit"):
        nn.init.normal_(original.get_submodule("heads.head").weight)  # zeros otherwise
    small, hand = pruned(name, original, x)
    models = {"original": original, "by hand": hand, "small": small}
    runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    sizes: list[object] = [name]
    with torch.inference_mode():
        assert relative_error(small(x), hand(x)) < 1e-4
    for suffix in (".onnx", ".pt2"):
        for key, model in models.items():
            path = folder / f"{name} {key}{suffix}"
            sizes.append(export(model, path, x).bytes / 1e6)
            if suffix == ".onnx":
                runs[f"onnxruntime {key}"] = session(path)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, model in models.items():
            runs[f"eager {key}"], runs[f"torch.compile {key}"] = model, compiled(model, x)
        for key, run in runs.items():
            assert relative_error(run(x), models[key.partition(" ")[2]](x)) < 1e-3, key
        times = interleaved({key: lambda run=run: run(x) for key, run in runs.items()}, rounds)
    rows = []
    for way in WAYS:
        mine = {key: times[f"{way} {key}"] for key in models}
        medians = [1000 * statistics.median(t) for t in mine.values()]
        over = [median_ratio(mine["small"], mine[key]) for key in ("by hand", "original")]
        rows.append((name, way, *medians, *over))
    return sizes, rows


def measure(names: Sequence[str] = NAMES, rounds: int = 20) -> str:
    """Two tables: sizes of files, latencies."""
    sizes, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            size, found = measure_one(name, rounds, Path(folder))
            sizes.append(size)
            rows += found
    kinds = ("original", "by hand", "small")
    files = table(("model", *(f"{s}, {k} (MB)" for s in (".onnx", ".pt2") for k in kinds)), sizes, ".1f")
    headers = ("model", "run by", *(f"{k} (ms)" for k in kinds), "small / by hand", "small / original")
    return files + "\n\n" + table(headers, rows, ("", "", ".1f", ".1f", ".1f", ".3f", ".3f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    print(measure(options.names, options.rounds))


if __name__ == "__main__":
    main()
