"""The least that a pass has to do, beside the seconds of Torch-Pruning: parts taken from torch, not from fxprune.

Without a proof: a forward of the original and one of the small model on fake tensors, the l1 norm of every weight, and
a copy of every kept part. With one: a forward of both in float64 too, with the weights in that type already. Models
whose code reads its mode need the forwards once more for training, which is not counted. One thread, seconds of the
processor, the least of some calls.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import fxprune
from tests.benchmarks.bench_pass import NAMES, ONCE, PIXELS, RATIO, medians, parsed, torch_pruning_step
from tests.benchmarks.common import in_fresh_process, model_and_input, processor_seconds, table


def least(function: Callable[[], Any], rounds: int) -> float:
    """The least seconds of some calls, after one to warm up."""
    function()
    return min(processor_seconds(function) for _ in range(rounds))


def fake_forward(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """A forward of a model on fake tensors."""
    mode = FakeTensorMode()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fakes = {name: mode.from_tensor(tensor) for name, tensor in state.items()}
    fake = mode.from_tensor(x)

    def forward() -> Any:
        with mode:
            return functional_call(model, fakes, (fake,))

    return forward


def slicing(model: nn.Module, small: nn.Module) -> Callable[[], Any]:
    """Copies of the parts of the weights that stay; the same number of slots, the first ones."""
    kept = small.state_dict()
    pairs = [(tensor, kept[name].shape) for name, tensor in model.state_dict().items() if name in kept]

    def cut() -> list[torch.Tensor]:
        made = []
        for tensor, shape in pairs:
            for dim, (before, now) in enumerate(zip(tensor.shape, shape, strict=True)):
                if now != before:
                    tensor = tensor.index_select(dim, torch.arange(now))
            made.append(tensor.clone())
        return made

    return cut


def scoring(model: nn.Module) -> Callable[[], Any]:
    """The l1 norm of every output of every weight."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]
    return lambda: [weight.abs().flatten(1).sum(1) for weight in weights]


def measure_one(name: str, pixels: int, rounds: int) -> dict[str, float]:
    """The seconds of each part; to be run in a fresh process."""
    torch.set_num_threads(1)
    model, x = model_and_input(name)
    x = x[..., :pixels, :pixels].contiguous()
    small = fxprune.transform(model, x, ratio=RATIO, importance="l1", verify=False)
    with torch.no_grad():
        fake = least(fake_forward(model, x), rounds) + least(fake_forward(small, x), rounds)
        weights = least(slicing(model, small), rounds) + least(scoring(model), rounds)
        both, wide = (copy.deepcopy(model).double(), small.double()), x.double()
        double = sum(least(lambda one=one: one(wide), rounds) for one in both)
    peer = []
    for _ in range(1 if name in ONCE else rounds):
        clone = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.append(processor_seconds(lambda clone=clone: torch_pruning_step(clone, x)))
    return {"fake": fake, "weights": weights, "double": double, "peer": min(peer)}


def measure(names: Sequence[str] = NAMES, pixels: Sequence[int] = PIXELS, rounds: int = 5) -> str:
    """The table, and below it the medians of its ratios."""
    rows: list[Sequence[Any]] = []
    for name, size in itertools.product(names, pixels):
        parts = in_fresh_process("tests.benchmarks.bench_floor", "--child", name, "--pixels", size, "--rounds", rounds)
        fake, weights, double, peer = (parts[key] for key in ("fake", "weights", "double", "peer"))
        rows.append(
            (name, size, fake, weights, peer, peer / (fake + weights), double, peer / (fake + weights + double))
        )
    rows += medians(rows, pixels, (5, 7))
    headers = (
        *("model", "pixels", "fake forwards (s)", "weights (s)", "torch-pruning (s)", "times faster at most"),
        *("float64 forwards (s)", "with proof, at most"),
    )
    return table(headers, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    options = parsed(__doc__, 5, arguments)
    if options.child:
        print(json.dumps(measure_one(options.names[0], options.pixels[0], options.rounds)))
    else:
        print(measure(options.names, options.pixels, options.rounds))


if __name__ == "__main__":
    main()
