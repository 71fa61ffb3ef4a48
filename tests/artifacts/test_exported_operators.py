"""The graph of a small model has no operation that picks, scatters or pads channels."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_attention import APART, MERGE, NORMS, POSITIONS, PRODUCT, SHARING
from networks_layers import TOKENS, Layer
from torch import Tensor, nn

import fxprune
from fxprune.artifacts import export
from tests.support import call, randomise, torchvision

WORDS = "gather scatter index pad take slice nonzero onehot one_hot where compress".split()
"""Parts of the names of operations that put channels elsewhere, or pick some."""

VIEWS = {
    "aten::slice"
}  # torch.export writes `x[:, 0]` with one for the colon or without, as the sizes are symbols or not


def moving(operators: Mapping[str, int]) -> Counter[str]:
    """The operations of a graph that pick, scatter or pad, without the suffix of those that work in place."""
    found: Counter[str] = Counter()
    for name, count in operators.items():
        if name not in VIEWS and any(word in name.lower() for word in WORDS):
            found[name.rstrip("_")] += count
    return found


def counts(model: nn.Module, inputs: Any, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Counter[str]]:
    return {suffix: moving(export(model, folder / f"model{suffix}", inputs).operators) for suffix in suffixes}


def image(pixels: int = 32) -> Tensor:
    return torch.randn(2, 3, pixels, pixels)


# -- models -----------------------------------------------------------------------------------------------


def resnet() -> tuple[nn.Module, Any]:
    models = torchvision().models
    return models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), image()


def mobilenet() -> tuple[nn.Module, Any]:
    v3 = torchvision().models.mobilenetv3
    setting, last = v3._mobilenet_v3_conf("mobilenet_v3_small")
    return v3.MobileNetV3(setting[:4], last, num_classes=10), image()


def shufflenet() -> tuple[nn.Module, Any]:
    models = torchvision().models
    return models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 128], num_classes=10), image(64)


def densenet() -> tuple[nn.Module, Any]:
    return torchvision().models.DenseNet(8, (2, 2, 2), 16, num_classes=10), image()


def vit() -> tuple[nn.Module, Any]:
    model = torchvision().models.VisionTransformer(32, 16, 2, 4, 48, 72, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zeros otherwise
    return model, image()


def transformers(name: str) -> tuple[nn.Module, Any]:
    from tests.models.transformers_zoo import build

    model, inputs = build(name)
    return model.float(), {**inputs, "use_cache": False} if "Causal" in name else inputs


def registered(name: str, pixels: int) -> tuple[nn.Module, Any]:
    return torchvision().models.get_model(name), image(pixels)


class Attending(nn.Module):
    """One attention of the generated networks, in these words, between two layers."""

    def __init__(self, **words: str) -> None:
        super().__init__()
        tables = {
            "apart": APART,
            "product": PRODUCT,
            "merge": MERGE,
            "position": POSITIONS,
            "norm": NORMS,
            "talking": "no linear einsum conv",
            "sharing": SHARING,
        }
        picks = [2, 2, "literal sizes minus heads-last chunk split slices widths separate".split().index("separate")]
        picks += [table.split().index(words.get(what, table.split()[0])) for what, table in tables.items()]
        x = torch.randn(2, 5, 12)
        self.into, self.out = nn.Linear(12, 12), nn.Linear(12, 7)
        self.block = TOKENS["self"](Layer("self", tuple(picks)), x, x)
        made = " ".join(self.block.features)
        assert all(word in made for word in words.values()), made

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(torch.relu(self.block(x, x)))


def attending(**words: str) -> tuple[nn.Module, Any]:
    return Attending(**words).float(), torch.randn(2, 5, 12)


Case = tuple[Callable[[], tuple[nn.Module, Any]], tuple[str, ...]]
FEW: dict[str, Case] = {
    "resnet": (resnet, ("fx", "export")),
    "mobilenet v3": (mobilenet, ("fx",)),
    "shufflenet v2": (shufflenet, ("eager",)),
    "densenet": (densenet, ("fx",)),
    "vit": (vit, ("eager",)),
    "llama": (functools.partial(transformers, "LlamaForCausalLM"), ("eager",)),
    "enable-gqa": (functools.partial(attending, sharing="enable-gqa", product="sdpa"), ("eager",)),
    "repeated keys": (functools.partial(attending, sharing="repeat", position="rotary-half"), ("eager", "export")),
}
MANY: dict[str, Case] = {
    "resnet": (resnet, ("eager",)),
    "shufflenet v2": (shufflenet, ("fx", "export")),
    "vit": (vit, ("export",)),
    "resnet18": (functools.partial(registered, "resnet18", 64), ("fx", "eager", "export")),
    "mobilenet_v3_small": (functools.partial(registered, "mobilenet_v3_small", 64), ("fx", "eager", "export")),
    "shufflenet_v2_x0_5": (functools.partial(registered, "shufflenet_v2_x0_5", 64), ("fx", "export")),
    "densenet121": (functools.partial(registered, "densenet121", 64), ("fx", "eager", "export")),
    "densenet": (densenet, ("eager", "export")),
    "bert": (functools.partial(transformers, "BertForMaskedLM"), ("eager", "export")),
    "llama": (functools.partial(transformers, "LlamaForCausalLM"), ("export",)),
    "qwen2": (functools.partial(transformers, "Qwen2ForCausalLM"), ("eager", "export")),
    "expanded keys": (functools.partial(attending, sharing="expand", position="rotary-half"), ("eager", "export")),
    "one key": (functools.partial(attending, sharing="multi-query", merge="flatten"), ("eager", "export")),
    "loop": (functools.partial(attending, product="loop", merge="heads-loop"), ("eager", "export")),
    "table": (functools.partial(attending, position="table", product="sdpa-mask"), ("eager", "export")),
}

OFTEN = [name if name in ("resnet", "vit") else pytest.param(name, marks=pytest.mark.slow) for name in FEW]


def check(case: Case, folder: Path, suffixes: tuple[str, ...] = (".pt2", ".onnx")) -> None:
    make, paths = case
    torch.manual_seed(0)
    model, inputs = make()
    model = randomise(model.eval(), 0)
    original = counts(model, inputs, folder, suffixes)
    for path in paths:
        small = fxprune.transform(model, inputs, ratio=0.5, path=path)
        before, after = fxprune.record(small).params
        assert after < before, path
        ours = counts(small, inputs, folder, suffixes)
        for suffix in suffixes:
            more = ours[suffix] - original[suffix]
            assert not more, f"{path} {suffix}: {dict(more)} on top of {dict(original[suffix])}"


@pytest.mark.filterwarnings("ignore:the small model is an exported graph")
@pytest.mark.parametrize("name", OFTEN)
def test_a_small_graph_moves_nothing_that_the_original_does_not_move(name: str, tmp_path: Path) -> None:
    check(FEW[name], tmp_path)


@pytest.mark.filterwarnings("ignore:the small model is an exported graph")
@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_real_graphs_move_nothing_that_the_original_does_not_move(name: str, tmp_path: Path) -> None:
    check(MANY[name], tmp_path)


class Two(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_count_sees_what_hooks_put_back(suffix: str, tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    small = fxprune.transform(Two().eval(), x, ratio=0.5, path="hooks")
    with pytest.warns(UserWarning, match="puts zeros back"):
        ours = counts(small, x, tmp_path, (suffix,))
    assert sum(ours[suffix].values()) >= 1
    with pytest.warns(UserWarning, match="puts zeros back"), pytest.raises(AssertionError, match="on top of"):
        check((lambda: (Two(), x), ("hooks",)), tmp_path, (suffix,))


# -- torch.compile ----------------------------------------------------------------------------------------


def breaks(model: nn.Module, inputs: Any) -> int:
    """The number of graph breaks that `torch.compile` meets in a model."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(torch.compile(model, backend="eager"), inputs)
    return sum(torch._dynamo.utils.counters["graph_break"].values())


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1


def test_the_count_of_graph_breaks_sees_one() -> None:
    assert breaks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)) == 0
    assert breaks(nn.Sequential(nn.Linear(3, 3), Broken()), torch.randn(2, 3)) >= 1


@pytest.mark.filterwarnings("ignore:the small model is an exported graph")
@pytest.mark.parametrize("name", OFTEN)
def test_a_small_model_compiles_into_as_few_graphs(name: str) -> None:
    make, paths = FEW[name]
    torch.manual_seed(0)
    model, inputs = make()
    model = randomise(model.eval(), 0)
    before = breaks(model, inputs)
    for path in paths:
        small = fxprune.transform(model, inputs, ratio=0.5, path=path)
        assert breaks(small, inputs) <= before, path
        if before:
            continue
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._dynamo.reset()
            compiled = torch.compile(small, fullgraph=True, backend="eager")
            torch.testing.assert_close(first(call(compiled, inputs)), first(call(small, inputs)))


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else next(iter(result.values()))
