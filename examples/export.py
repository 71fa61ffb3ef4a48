"""How does a small model reach a runtime that knows neither its code nor torch?

Prunes a network, exports original and small model as ONNX with a batch of any size, and runs both in onnxruntime. The
exporter compares every file with its model before it writes it.

    pip install 'fxprune[onnx]' && python examples/export.py
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import fxprune
from fxprune import Exported, export

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def network() -> nn.Module:
    """Three convolutions and a classifier."""
    sizes = [(3, 32), (32, 64), (64, 128)]
    blocks = [
        layer
        for before, after in sizes
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


def milliseconds(made: Exported, x: torch.Tensor) -> float:
    """The fastest of ten runs in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    times = []
    for _ in range(10):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    """Prune, export, run, and print what came out."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"This example needs {', '.join(missing)}, and they are not installed: pip install 'fxprune[onnx]'")
        return
    torch.manual_seed(0)
    net, x = network(), torch.randn(2, 3, 32, 32)
    small = fxprune.transform(net, x, ratio=0.5, round_to=8)
    batch = torch.randn(8, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("original", net), ("small", small)):
            made = export(model, Path(folder) / f"{name}.onnx", x, dynamic_batch=True)
            took = milliseconds(made, batch)
            print(f"{name:<9} {made.bytes:>8} bytes, batch of 8 in {took:.1f} ms, relative error {made.error:.0e}")
            print(f"          {dict(made.operators)}")


if __name__ == "__main__":
    main()
