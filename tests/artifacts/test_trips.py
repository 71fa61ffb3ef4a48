"""Models that are saved and loaded are equal bit for bit: every path, every dtype, real models, models pruned twice."""

from __future__ import annotations

import copy
import functools
import importlib.util
from pathlib import Path
from typing import Any

import networks
import networks_tokens
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, load_model
from test_golden import NETWORKS
from torch import Tensor, fx, nn

import fxprune
from fxprune.artifacts import load, save
from tests.artifacts.trips import (
    Attention,
    Literal,
    Normed,
    Plain,
    Recurrent,
    Tied,
    differences,
    equal,
    image,
    pruned,
    run,
    seeded,
    tensors,
    trip,
)
from tests.support import torchvision

DRAWN = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def words() -> Tensor:
    return torch.randint(0, 11, (2, 5))


TRIPS: dict[str, tuple[Any, Any, bool | None, dict[str, Any]]] = {
    "plain fx": (Plain, image, False, {"path": "fx"}),
    "plain eager": (Plain, image, False, {"path": "eager"}),
    "plain export": (Plain, image, True, {"path": "export"}),
    "plain hooks": (Plain, image, True, {"path": "hooks"}),
    "literal fx": (Literal, image, True, {"path": "fx"}),
    "literal export": (Literal, image, True, {"path": "export"}),
    "attention eager": (Attention, lambda: torch.randn(2, 3, 16), False, {}),
    "attention export": (Attention, lambda: torch.randn(2, 3, 16), True, {"path": "export"}),
    "preserved fx": (Normed, lambda: torch.randn(2, 3, 16), True, {"norms": "preserve", "path": "fx"}),
    "preserved eager": (Normed, lambda: torch.randn(2, 3, 16), True, {"norms": "preserve", "path": "eager"}),
    "not preserved": (Normed, lambda: torch.randn(2, 3, 16), False, {"path": "fx"}),
    "tied fx": (Tied, words, False, {"path": "fx"}),
    "tied eager": (Tied, words, False, {"path": "eager"}),
    "tied export": (Tied, words, True, {"path": "export"}),
    "torch attention": (
        lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True),
        lambda: torch.randn(2, 3, 16),
        True,
        {"path": "eager"},
    ),
    "recurrent": (Recurrent, lambda: torch.randn(3, 2, 5), False, {}),
    "nothing removed": (Plain, image, False, {"ratio": 0.0}),
}


@pytest.mark.parametrize("name", TRIPS)
def test_every_path_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    make, inputs, needed, options = TRIPS[name]
    again = trip(make, inputs(), tmp_path, needed=needed, **options)
    if "path" in options:
        assert fxprune.record(again).path == options["path"]
    assert bool(fxprune.record(again).removed) == (options.get("ratio") != 0.0)


@pytest.mark.parametrize("path", ["fx", "eager", "export", "hooks"])
def test_a_plan_is_tried_first_on_its_own_path(path: str) -> None:
    net, x = seeded(Plain, 1), image()
    plan = fxprune.record(pruned(net, x, path=path)).plan
    small = fxprune.transform(net, x, plan=plan)
    assert fxprune.record(small).path == path
    assert fxprune.record(small).plan == plan


class Deciding(Plain):
    """A forward that decides by the numbers in its input, and is observed on real tensors."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.wide(x) if float(x.sum()) > 0 else self.wide(-x)
        return self.head(x.mean((2, 3)))


def test_a_forward_that_decides_by_numbers_is_saved_and_loaded(tmp_path: Path) -> None:
    again = trip(Deciding, image(), tmp_path, needed=False)
    assert any("decides by numbers" in reason for reason in fxprune.record(again).reasons)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_networks_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    trip(make, torch.randn(shape), tmp_path)


@settings(DRAWN, max_examples=5)
@given(program=networks.programs())
def test_generated_networks_are_loaded(program: networks.Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    trip(lambda: networks.build(program), networks.images(program), tmp_path_factory.mktemp("trip"))


@settings(DRAWN, max_examples=3)
@given(program=networks_tokens.token_programs(longest=2))
def test_generated_networks_over_tokens_are_loaded(
    program: networks_tokens.Tokens, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make = functools.partial(networks_tokens.build_tokens, program)
    trip(make, networks_tokens.tokens(make(), program), tmp_path_factory.mktemp("trip"))


REAL = {
    "torchvision": ("tests.models.torchvision_zoo", "build", ("mobilenet_v3_small", (1, 3, 64, 64))),
    "timm": ("tests.models.timm_zoo", "build", ("vision_transformer",)),
    "transformers": ("tests.models.transformers_zoo", "build", ("LlamaForCausalLM",)),
}


@pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here
@pytest.mark.parametrize("family", REAL)
def test_real_models_are_saved_and_loaded(family: str, tmp_path: Path) -> None:
    assert importlib.util.find_spec(family), f"{family} is among the test dependencies"
    torchvision()  # the others import it where it is installed
    place, function, arguments = REAL[family]
    build = getattr(importlib.import_module(place), function)
    model, inputs = build(*arguments)
    again = trip(lambda: build(*arguments)[0], inputs, tmp_path, importance="random", seed=0, ratio=0.3)
    before, after = fxprune.record(again).params
    assert after < 0.8 * before
    assert type(again).__name__ == type(model).__name__ or isinstance(again, fx.GraphModule)


# -- numbers, names and modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    small = pruned(seeded(Tied, 1), words()).to(dtype)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", into=seeded(Tied, 2))
    assert differences(small, again, words()) == []
    kinds = {name: tensor.dtype for name, tensor in tensors(again).items()}
    assert kinds["inner.weight"] == kinds["gain"] == dtype
    assert (kinds["order"], kinds["flags"]) == (torch.int64, torch.bool)


def test_a_model_on_the_meta_device_is_enough(tmp_path: Path) -> None:
    small = pruned(seeded(Tied, 1), words())
    save(small, tmp_path / "small.safetensors")
    with torch.device("meta"):
        into = Tied().eval()
    assert differences(small, load(tmp_path / "small.safetensors", into=into), words()) == []
    assert {tensor.device.type for tensor in tensors(into).values()} == {"meta"}


def test_modes_are_those_of_the_saved_model_and_gradients_those_of_into(tmp_path: Path) -> None:
    small = pruned(seeded(Plain, 1), image())
    small.train()
    small.get_submodule("norm").eval()
    save(small, tmp_path / "small.safetensors")
    into = seeded(Plain, 2)
    into.get_submodule("conv").weight.requires_grad_(False)
    again = load(tmp_path / "small.safetensors", into=into)
    assert [name for name, module in again.named_modules() if not module.training] == ["norm"]
    assert not into.training
    assert [name for name, p in again.named_parameters() if not p.requires_grad] == ["conv.weight"]


def test_the_record_proves_what_was_loaded(tmp_path: Path) -> None:
    net, x = seeded(Plain, 1).double(), image().double()
    small = pruned(net, x)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", into=seeded(Plain, 2))
    assert fxprune.record(again) == fxprune.record(small)
    assert fxprune.record(again).report() == fxprune.record(small).report()
    assert fxprune.verify(net, again, torch.randn(3, 3, 9, 7, dtype=torch.float64)) < 1e-12


def test_a_graph_module_is_loaded_into_one(tmp_path: Path) -> None:
    small = pruned(fx.symbolic_trace(seeded(Plain, 1)), image())
    save(small, tmp_path / "small.safetensors")
    into = fx.symbolic_trace(seeded(Plain, 2))
    code = into.code
    again = load(tmp_path / "small.safetensors", into=into)
    assert differences(small, again, image()) == []
    assert (into.code, again.code) == (code, small.code)
    again.graph.eliminate_dead_code()
    assert again.graph is not into.graph


def test_the_original_is_loaded_into_what_holds_other_weights_already(tmp_path: Path) -> None:
    small = pruned(seeded(Plain, 1), image())
    save(small, tmp_path / "small.safetensors")
    other = seeded(Plain, 5)
    other.load_state_dict(seeded(Plain, 6).state_dict())
    assert differences(small, load(tmp_path / "small.safetensors", into=other), image()) == []


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_a_deep_copy_is_saved_as_what_it_was_copied_from(path: str, tmp_path: Path) -> None:
    """Torch's deep copy of a graph module moves the buffers outside state_dict into it, and renames the class."""
    small = pruned(seeded(Tied, 1), words(), path=path)
    save(small, tmp_path / "small.safetensors")
    save(copy.deepcopy(small), tmp_path / "copy.safetensors")
    again = load(tmp_path / "copy.safetensors", into=seeded(Tied, 2), example_inputs=words())
    assert differences(small, again, words()) == []
    assert sorted(load_file(tmp_path / "copy.safetensors")) == sorted(load_file(tmp_path / "small.safetensors"))


# -- other programs read the file --------------------------------------------------------------------------


class ByHand(Plain):
    """`Plain` without 40 % of its channels, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.wide = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 8, 3)
        self.head = nn.Linear(8, 5)


def test_a_model_written_by_hand_takes_the_weights(tmp_path: Path) -> None:
    small, x = pruned(seeded(Plain, 1), image()), image()
    save(small, tmp_path / "small.safetensors")
    stored = load_file(tmp_path / "small.safetensors")
    assert sorted(stored) == sorted(small.state_dict())
    hand = ByHand().eval()
    hand.load_state_dict(stored)
    assert all(map(equal, run(hand, x), run(small, x)))


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    small = pruned(seeded(Tied, 1), words())
    save(small, tmp_path / "small.safetensors")
    stored = load_file(tmp_path / "small.safetensors")
    assert sorted(stored) == sorted(set(small.state_dict()) - {"head.weight"})
    other = pruned(seeded(Tied, 1), words())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_model(other, tmp_path / "small.safetensors")  # knows that head.weight is embed.weight
    assert all(equal(tensor, other.state_dict()[name]) for name, tensor in small.state_dict().items())


# -- twice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inputs", "options"),
    [
        (Plain, image, {}),
        (Literal, image, {}),
        (Literal, image, {"path": "export"}),
        (Attention, lambda: torch.randn(2, 3, 16), {}),
        (Normed, lambda: torch.randn(2, 3, 16), {"norms": "preserve"}),
        (Normed, lambda: torch.randn(2, 3, 16), {"norms": "preserve", "path": "eager"}),
    ],
)
def test_pruned_twice_and_loaded_into_the_original(make: Any, inputs: Any, options: Any, tmp_path: Path) -> None:
    x = inputs()
    first = pruned(seeded(make, 1), x, ratio=0.3, **options)
    second = pruned(first, x, ratio=0.3, **{k: v for k, v in options.items() if k != "path"})
    both = fxprune.record(first).then(fxprune.record(second))
    save(second, tmp_path / "second.safetensors")
    save(second, tmp_path / "both.safetensors", record=both)
    into_first = load(tmp_path / "second.safetensors", into=first, example_inputs=x)
    assert fxprune.record(into_first) == fxprune.record(second)
    for name in ("second.safetensors", "both.safetensors"):
        again = load(tmp_path / name, into=seeded(make, 2), example_inputs=x)
        assert fxprune.record(again) == both
        assert both.params == (fxprune.record(first).params[0], fxprune.record(second).params[1])
        for made in (into_first, again):
            assert [n for n, t in second.state_dict().items() if not equal(t, made.state_dict()[n])] == []
            assert all(map(equal, run(second, x), run(made, x)))
    with pytest.raises(fxprune.PlanError, match="another model"):
        load(tmp_path / "second.safetensors", into=nn.Sequential(nn.Linear(3, 3)), example_inputs=torch.randn(2, 3))


def test_records_of_other_norms_are_not_joined() -> None:
    first = pruned(seeded(Attention, 1), torch.randn(2, 3, 16))
    second = pruned(first, torch.randn(2, 3, 16), norms="preserve")
    with pytest.raises(fxprune.PlanError) as caught:
        fxprune.record(first).then(fxprune.record(second))
    assert 'the first was made with norms="kept", the second with "preserve"' in str(caught.value)
    assert "with the same norms" in str(caught.value)


# -- the helpers of these tests see what is wrong ------------------------------------------------------------


def test_differences_are_seen() -> None:
    small = pruned(seeded(Tied, 1), words(), path="eager")
    x = words()

    def broken(change: Any) -> list[str]:
        other = copy.deepcopy(small)
        with torch.no_grad():
            change(other)
        return differences(small, other, x)

    assert broken(lambda m: None) == []
    assert "tensor inner.bias" in broken(lambda m: m.inner.bias[0].add_(1e-6))
    assert broken(lambda m: m.gain.neg_().neg_()) == []
    assert "tensor gain" in broken(lambda m: m.gain[0].add_(1e-6))
    assert "what is tied" in broken(lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight.clone())))
    assert any("module" in d for d in broken(lambda m: setattr(m.inner, "out_features", 99)))
    assert any("module" in d for d in broken(lambda m: m.inner.train()))
    assert "outputs" in broken(lambda m: m.out.weight.add_(1.0))
