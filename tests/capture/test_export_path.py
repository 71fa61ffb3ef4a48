"""The exported graph: names, structures and modes of the original, and sizes that stand in ATen operations."""

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture.captured import NOTES
from fxprune.capture.exported import export
from fxprune.capture.inputs import leaves_for_placeholders, normalize
from fxprune.errors import text_of
from tests.support import calibrate, randomise, relative_error, torchvision

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning")

Case = tuple[nn.Module, Any, Any]


def call(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = normalize(inputs)
    return model(*args, **kwargs)


def prune_exported(case: Case, **options: Any) -> tuple[Any, nn.Module]:
    """Export, prune and compare, on the example and on inputs of another size; gradients flow; it exports again."""
    model, inputs, others = case
    graph_module = export(model, normalize(inputs))
    with torch.no_grad():
        assert relative_error(call(graph_module, inputs), call(model, inputs)) < 1e-12
    request = {"ratio": 0.3, "importance": "random", "seed": 0, "exact": True} | options
    small = fxprune.transform(graph_module, inputs, **request)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    reference = fxprune.masked(graph_module, fxprune.record(small).removed)
    for values in (inputs, others):
        with torch.no_grad():
            assert relative_error(call(small, values), call(reference, values)) < 1e-9
    outputs = [t for t in pytree.tree_leaves(call(small, inputs)) if isinstance(t, torch.Tensor)]
    sum(t.sum() for t in outputs).backward()
    assert any(p.grad is not None and p.grad.any() for p in small.parameters())
    again = export(small, normalize(inputs))
    with torch.no_grad():
        assert relative_error(call(again, inputs), call(small, inputs)) < 1e-12
    return graph_module, small


class Decides(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[: int(x.abs().sum()) % 3 + 1])


def test_a_model_that_torch_does_not_export_is_refused_with_one_sentence_and_the_next_step() -> None:
    with pytest.raises(fxprune.FxpruneError) as caught:
        fxprune.transform(Decides(4, 4), torch.randn(3, 4), ratio=0.5, path="export")
    at, why, do = str(caught.value).splitlines()[1:]
    assert at.endswith(f"{__file__}:{Decides.forward.__code__.co_firstlineno + 1}")
    assert why.startswith("  why  GuardOnDataDependentSymNode: Could not guard on data-dependent expression")
    assert do.startswith("  do   write this line without a decision by numbers in tensors")


# -- the capture ------------------------------------------------------------------------------------------


class Cache:
    """A class that pytree does not know."""


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor
    cache: Any = None


class Tied(nn.Module):
    """Tied weights, buffers of both kinds, plain tensors, an unused layer, a cache in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(8)
        self.norm.weight.requires_grad_(False)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.same = self.block
        self.unused = nn.Linear(3, 3)
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.plain = torch.rand(8)
        self.last: Any = None

    def forward(self, ids: torch.Tensor, *, mask: torch.Tensor | None = None) -> Result:
        hidden = self.embed(ids)
        batch, length, width = hidden.shape
        self.last = hidden
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2) * self.scale + self.plain
        hidden = hidden.view(batch, length, 2, width // 2).transpose(1, 2).reshape(batch * 2, length, width // 2)
        hidden = hidden.view(batch, 2, length, width // 2).transpose(1, 2).reshape(batch, length, width)
        hidden = self.same(self.block(hidden)) * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
        if mask is not None:
            hidden = hidden * mask[..., None]
        return Result(self.head(hidden), hidden, Cache())


def test_names_flags_and_modes_are_the_originals() -> None:
    net = Tied().eval()
    inputs = {"mask": torch.ones(2, 5), "ids": torch.randint(0, 10, (2, 5))}
    made = export(net, normalize(inputs))
    for kind in ("named_parameters", "named_buffers"):
        mine = dict(getattr(made, kind)(remove_duplicate=False))
        theirs = dict(getattr(net, kind)(remove_duplicate=False))
        assert {name: mine[name] for name in theirs} == theirs, "the very same tensors"
        if kind == "named_parameters":
            assert list(mine) == list(theirs)
        else:
            assert sorted(set(mine) - set(theirs)) == ["lifted_tensor_0", "plain"]
    assert list(made.state_dict()) == list(net.state_dict())
    assert made.get_parameter("head.weight") is made.get_parameter("embed.weight")
    assert not made.get_parameter("norm.weight").requires_grad
    assert isinstance(made.get_submodule("embed"), nn.Embedding)
    assert net.last is None, "the model is left alone"
    assert not made.training
    assert made.train().norm.training
    copied = copy.deepcopy(made).eval()
    got, want = copied(inputs["ids"], mask=inputs["mask"]), net(**inputs)
    assert isinstance(got, Result)
    assert relative_error([got.logits, got.hidden], [want.logits, want.hidden]) == 0
    assert got.cache is None
    assert any(".cache" in note and "Cache" in note for note in made.meta[NOTES])
    assert copied(torch.randint(0, 10, (3, 4)), mask=torch.ones(3, 4)).logits.shape == (3, 4, 10)
    for reading in (inputs, (inputs["ids"],)):
        if len(reading) == 2:
            leaves = leaves_for_placeholders(made.graph, normalize(reading))
            assert [id(t) for t in leaves] == [id(inputs["ids"]), id(inputs["mask"])]
        else:
            with pytest.raises(fxprune.InputError, match="exported"):
                leaves_for_placeholders(made.graph, normalize(reading))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, pair: Any, factor: int = 2, *, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            still = self.layer(pair[0])
        with torch.autocast("cpu", enabled=False):
            moving = self.layer(pair[1]["x"]) * factor
        return {"y": self.out(still + moving) + shift, "z": shift}


def test_regions_without_gradients_are_part_of_the_graph_and_pass_none() -> None:
    net = Nested().double()
    x = [torch.randn(2, 4).double() for _ in range(2)]
    args, kwargs = ((x[0], {"x": x[1]}), 3), {"shift": torch.randn(3).double()}
    made = export(net, (args, kwargs))
    assert not made.graph.find_nodes(op="call_module")
    assert not any("higher_order" in str(node.target) for node in made.graph.nodes)
    assert any("factor" in note and "3" in note for note in made.meta[NOTES])
    assert [t.shape for t in leaves_for_placeholders(made.graph, (args, kwargs)) if isinstance(t, torch.Tensor)] == [
        t.shape for t in (x[0], x[1], kwargs["shift"])
    ]
    gradients = []
    for module in (net, made):
        net.zero_grad()
        module(*args, **kwargs)["y"].sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert relative_error(gradients[0], gradients[1]) == 0


def test_a_batch_of_one_stays_a_symbol() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(2), nn.Linear(36, 2)).eval()
    made = export(net, normalize(torch.randn(1, 3, 8, 8)))
    assert made(torch.randn(5, 3, 8, 8)).shape == (5, 8, 2)


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else x + 1


def test_a_model_that_cannot_be_exported_gives_an_error_of_four_parts(capfd: pytest.CaptureFixture[str]) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(fxprune.CaptureError) as caught:
        export(Deciding(), normalize(torch.randn(2, 3)))
    assert "test_export_path.py" in str(caught.value)
    assert "data-dependent" in str(caught.value)
    assert [line[2:5].strip() for line in str(caught.value).splitlines()[1:] if line[2] != " "] == ["at", "why", "do"]
    assert caught.value.why == text_of(caught.value.__cause__ or ValueError(), lines=1)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert capfd.readouterr() == ("", "")


# -- sizes in ATen operations -----------------------------------------------------------------------------

MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view": lambda x: x.view(x.shape[0], 2, 8, *x.shape[2:]).mean(1),
    "flattened": lambda x: x.reshape(-1, *x.shape[2:]).view(x.shape[0], -1, *x.shape[2:]),
    "batch times heads": lambda x: (x.reshape(x.shape[0] * 4, 4, -1) * 2).reshape(x.shape),
    "flatten": lambda x: x.flatten(1, 2).unflatten(1, (16, x.shape[2])),
    "expand": lambda x: x.new_ones(1, 1, 1, 1).expand(x.shape[0], 16, 1, 1) * x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1)[:, 8:24],
    "split": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split(8, 1))], 1),
    "split sizes": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split((3, 13), 1))], 1),
    "chunk": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.chunk(2, 1))], 1),
    "tensor_split": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.tensor_split((2, 5), 1))], 1),
    "slice": lambda x: torch.cat((x[:, :3] * 2, x[:, 3:-1], x[:, -1:] * 3), 1),
    "steps": lambda x: torch.cat((x[:, ::2] * 2, x[:, 1::2]), 1),
    "select": lambda x: x * x[:, 3:4] + x[:, 5].unsqueeze(1),
    "narrow": lambda x: torch.cat((x.narrow(1, 2, 14), x.narrow(1, 0, 2)), 1),
    "roll": lambda x: x.roll(3, 1),
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)),
    "cut": lambda x: F.pad(x, (0, 0, 0, 0, -2, -1)),
    "list": lambda x: x[:, [15, 0, 2, 2, 5]],
    "unbind": lambda x: torch.stack(x.view(x.shape[0], 2, 8, *x.shape[2:]).unbind(1), 1).sum(1),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "new_full": lambda x: torch.cat((x, x.new_full((x.shape[0], 16, *x.shape[2:]), 2.0)), 1),
    "zeros": lambda x: torch.cat((x, torch.zeros(x.shape[0], 16, *x.shape[2:], dtype=x.dtype)), 1),
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze()[..., None, None],
    "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3).transpose(1, 2)[
        ..., None
    ],
}


class Moving(nn.Module):
    """Convolution, one movement of its 16 channels, convolution; with groups and a group norm around."""

    def __init__(self, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.move = nn.Conv2d(3, 8, 3, padding=1), move
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.back = nn.ConvTranspose2d(16, 8, 3, padding=1, groups=2)
        self.free = nn.Conv2d(8, 16, 1)
        with torch.no_grad():
            width = move(torch.zeros(2, 16, 4, 4)).shape[1]
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.back(self.norm(self.grouped(self.first(x))))
        return self.last(self.move(self.free(h)))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MOVES)
def test_sizes_and_positions_are_recounted(name: str) -> None:
    net = randomise(Moving(MOVES[name]).double().eval(), 0)
    x, other = torch.randn(2, 3, 4, 4).double(), torch.randn(3, 3, 4, 4).double()
    made = export(net, normalize(x))
    for seed, ratio in ((0, 0.3), (1, 0.5)):
        small = fxprune.transform(made, x, ratio=ratio, importance="random", seed=seed, exact=True)
        reference = fxprune.masked(made, fxprune.record(small).removed)
        for values in (x, other):
            assert relative_error(small(values), reference(values)) < 1e-9


class Positions(nn.Module):
    """Positions are looked up in a buffer that is longer than the example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(16, 8), nn.Linear(8, 4)
        self.register_buffer("positions", torch.arange(16)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x[..., None] + self.embed(self.positions[:, : x.shape[1]]))


def test_slots_that_the_example_does_not_reach_stay() -> None:
    net, x = Positions().double(), torch.randn(2, 5).double()
    made = export(net, normalize(x))
    small = fxprune.transform(made, x, ratio=0.5, importance="random", seed=0)
    assert small.positions.shape == (1, 16)
    assert small(torch.randn(3, 16).double()).shape == (3, 16, 4)


# -- models -----------------------------------------------------------------------------------------------


def pictures(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size).double()


def ready(model: nn.Module) -> nn.Module:
    return randomise(model.double().eval(), 0)


def resnet18() -> Case:
    model = torchvision().models.resnet18(num_classes=10).double().eval()
    return calibrate(randomise(model, 0), pictures(4, 64), 0).eval(), pictures(1, 64), pictures(3, 64)


def vit() -> Case:
    model = torchvision().models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    return ready(model), pictures(2, 32), pictures(3, 32)


def swin() -> Case:
    model = torchvision().models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=10)
    return ready(model), pictures(2, 32), pictures(3, 32)


def maxvit() -> Case:
    model = torchvision().models.MaxVit((32, 32), 8, 4, [16, 16], [1, 1], 4, 0.1, num_classes=10)
    return ready(model), pictures(2, 32), pictures(3, 32)


def shufflenet() -> Case:
    return ready(torchvision().models.shufflenet_v2_x0_5(num_classes=10)), pictures(2, 64), pictures(3, 64)


def timm(name: str, size: int, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        torchvision()
        create = pytest.importorskip("timm").create_model
        return ready(create(name, num_classes=10, **options)), pictures(2, size), pictures(3, size)

    return make


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
FED = {**SMALL, "intermediate_size": 48, "max_position_embeddings": 32}


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 50, (batch, length))}


def pair(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {**text(batch, length), "decoder_input_ids": torch.randint(0, 50, (batch, length - 2))}


def transformers(kind: str, inputs: Any = text, length: int = 5, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        torchvision()
        library = pytest.importorskip("transformers")
        network = getattr(library, kind)
        return ready(network(network.config_class(**options))), inputs(2, 7), inputs(3, length)

    return make


def clip() -> Case:
    def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
        return {**text(batch, length), "pixel_values": pictures(batch, 16)}

    vision = {k: v for k, v in FED.items() if k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    vision |= {"intermediate_size": 48, "image_size": 16, "patch_size": 8}
    written = {**FED, "bos_token_id": 0, "eos_token_id": 49}
    return transformers("CLIPModel", inputs, text_config=written, vision_config=vision, projection_dim=16)()


T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {"vocab_size": 50, "d_model": 32, "max_position_embeddings": 32}
for _side in ("encoder", "decoder"):
    BART |= {f"{_side}_layers": 1, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 48}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32, "bos_token_id": 0}

FAST: dict[str, Callable[[], Case]] = {
    "vit": vit,
    "Bart": transformers("BartForConditionalGeneration", pair, 6, **BART),
}
SLOW: dict[str, Callable[[], Case]] = {
    "resnet18": resnet18,
    "convit": timm("convit_tiny", 32, img_size=32, depth=2, local_up_to_layer=1),
    "Bert": transformers("BertModel", **FED),
    "Llama": transformers("LlamaForCausalLM", num_key_value_heads=2, **FED),
    "swin": swin,
    "maxvit": maxvit,
    "shufflenet": shufflenet,
    "timm vit": timm("vit_tiny_patch16_224", 32, img_size=32, depth=2),
    "timm swin": timm(
        "swin_tiny_patch4_window7_224", 64, img_size=64, window_size=4, depths=(2, 2), num_heads=(2, 4), embed_dim=32
    ),
    "mobilevit": timm("mobilevit_xxs", 64),
    "levit": timm("levit_128s", 224),
    "mvitv2": timm("mvitv2_tiny", 64, img_size=64),
    "nest": timm("nest_tiny", 64, img_size=64),
    "hiera": timm("hiera_tiny_224", 64, img_size=64),
    "GPT2": transformers("GPT2LMHeadModel", eos_token_id=0, **GPT2),
    "T5": transformers("T5ForConditionalGeneration", pair, 6, **T5),
    "Mamba": transformers(
        "MambaForCausalLM", length=7, vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2
    ),
    "CLIP": clip,
}


@pytest.mark.parametrize("name", FAST)
def test_models_are_pruned_as_exported_graphs(name: str) -> None:
    prune_exported(FAST[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_models_are_pruned_as_exported_graphs(name: str) -> None:
    prune_exported(SLOW[name]())


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class _Effects(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind, self.count = nn.Linear(4, 8), nn.Linear(8, 2), kind, 0

    def forward(self, x):
        h = self.a(x)
        if self.kind == "function":
            h = _Doubled.apply(h)
        elif self.kind == "state":
            self.count += 1
        return self.b(h)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("function", "applies the autograd.Function _Doubled"), ("state", "assigns to self.count"), ("none", "")],
)
@pytest.mark.parametrize("inside", [False, True])
def test_the_record_says_what_an_exported_graph_does_not_keep(kind, why, inside):
    model, x = _Effects(kind), torch.randn(3, 4)
    small = fxprune.transform(nn.Sequential(model) if inside else model, x, ratio=0.5, path="export")
    reasons = [reason for reason in fxprune.record(small).reasons if "does not keep this" in reason]
    assert len(reasons) == bool(why)
    assert all(f"forward {why} (" in reason and "test_export_path.py:" in reason for reason in reasons)


class _Frozen(_Effects):
    """Has a `train` of its own, and draws numbers of Python, numpy or torch."""

    def train(self, mode=True):
        super().train(mode)
        self.a.eval()
        return self

    def forward(self, x):
        draw = {"python": random.random, "numpy": np.random.rand, "torch": lambda: 0.0}[self.kind]
        return super().forward(x) if draw() < 2 else x


@pytest.mark.parametrize("kind", ["python", "numpy", "torch"])
def test_the_record_names_hooks_modes_and_random_numbers_that_an_exported_graph_does_not_keep(kind):
    model, x = _Frozen(kind).eval(), torch.randn(3, 4)
    model.b.register_full_backward_hook(lambda module, gave, took: None)
    model.register_full_backward_pre_hook(lambda module, gave: None)
    small = fxprune.transform(model, x, ratio=0.5, path="export")
    reasons = [reason for reason in fxprune.record(small).reasons if "does not keep this" in reason]
    for text in (
        'a backward hook of "b" (',
        "a backward pre-hook of the model (",
        "a train() of its own, which the model",
    ):
        assert any(text in reason and "test_export_path.py:" in reason for reason in reasons)
    assert any("random numbers of Python or numpy" in reason for reason in reasons) == (kind != "torch")
