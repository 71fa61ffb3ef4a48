"""Numbers of a config for single layers, where the class reads them; and where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.configs.per_layer import fields_by_layer, pinned, renumbered, tidied
from fxprune.errors import PlanError
from tests.support import randomise, torchvision

transformers = pytest.importorskip("transformers")
torchvision()  # which it imports
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages

IDS = torch.arange(14).reshape(2, 7) % 32


class LayeredConfig(transformers.PreTrainedConfig):  # type: ignore[name-defined,misc]
    """The config of a model whose layers may differ."""

    model_type = "layered"

    def __init__(self, **more: Any) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = 32, 24, 3
        self.intermediate_size, self.num_attention_heads, self.head_dim = 48, 4, 6
        for name in [*more]:
            if name in vars(self):
                setattr(self, name, more.pop(name))
        super().__init__(**more)


class Layer(nn.Module):
    """Attention and an MLP, of the widths of one layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.width = config.hidden_size, config.head_dim
        inner = config.num_attention_heads * self.width
        self.q, self.k, self.v, self.o = *(nn.Linear(width, inner) for _ in range(3)), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(made.transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


class Layered(transformers.PreTrainedModel):  # type: ignore[name-defined,misc]
    """A language model that reads `per_layer_config`."""

    config_class = LayeredConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed, self.head = nn.Embedding(32, config.hidden_size), nn.Linear(config.hidden_size, 32)
        self.layers = nn.ModuleList(Layer(self.of_layer(config, number)) for number in range(config.num_hidden_layers))
        self.post_init()

    def of_layer(self, config: Any, number: int) -> Any:
        return config.per_layer_config[number]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Alike(Layered):
    """The same model, which takes the numbers of the config for all layers."""

    def of_layer(self, config: Any, number: int) -> Any:
        return config


def made(kind: Any = Layered, **numbers: Any) -> Any:
    torch.manual_seed(0)
    model = kind(LayeredConfig(**numbers)).eval()
    randomise(model, 0)
    return model


def again(small: Any, folder: Path) -> Any:
    """The small model, saved, and loaded by its class."""
    small.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    return type(small).from_pretrained(folder).eval()


def test_every_layer_keeps_a_width_of_its_own(tmp_path: Path) -> None:
    small = fxprune.transform(made(), IDS, counts={"layers.0.up": 12, "layers.2.up": 30}, uniform="config")
    assert [layer.up.out_features for layer in small.layers] == [12, 48, 30]
    assert json.loads(small.config.to_json_string())["per_layer_config"] == {
        "0": {"intermediate_size": 12},
        "2": {"intermediate_size": 30},
    }
    assert torch.equal(again(small, tmp_path)(IDS), small(IDS))


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_budget_may_be_spread_unevenly(scope: str, tmp_path: Path) -> None:
    model = made()
    for layer in model.layers[1:]:
        layer.up.weight.data *= 3
    small = fxprune.transform(model, IDS, keep={"params": 0.6}, scope=scope, uniform="config")
    widths = {layer.up.out_features for layer in small.layers}
    assert (len(widths) > 1) == (scope == "global")
    assert torch.equal(again(small, tmp_path)(IDS), small(IDS))


def test_one_number_is_written_where_all_layers_are_alike() -> None:
    small = fxprune.transform(made(), IDS, ratio=0.5, uniform="config")
    said = small.config.to_dict()
    assert "per_layer_config" not in said
    assert (said["intermediate_size"], said["num_attention_heads"], said["hidden_size"]) == (24, 2, 12)


def test_a_class_that_raises_gets_one_number_for_all_layers() -> None:
    model = made(Alike)
    small = fxprune.transform(model, IDS, keep={"params": 0.6}, scope="global", uniform="config")
    assert len({layer.up.out_features for layer in small.layers}) == 1
    assert "per_layer_config" not in small.config.to_dict()
    with pytest.raises(PlanError, match=r"layers\.0\.up"):
        fxprune.transform(model, IDS, counts={"layers.0.up": 12, "layers.2.up": 30}, uniform="config")


def test_a_config_that_differs_by_layer_is_pruned_further(tmp_path: Path) -> None:
    model = made(per_layer_config={1: {"intermediate_size": 32}})
    small = fxprune.transform(model, IDS, ratio=0.5, uniform="config")
    assert [layer.up.out_features for layer in small.layers] == [24, 16, 24]
    assert torch.equal(again(small, tmp_path)(IDS), small(IDS))


def test_fields_of_layers_go_with_their_layers(tmp_path: Path) -> None:
    model = made(per_layer_config={1: {"intermediate_size": 32}, 2: {"intermediate_size": 16}})
    small = fxprune.transform(model, IDS, drop=["layers.1"], uniform="config")
    assert json.loads(small.config.to_json_string())["per_layer_config"] == {"1": {"intermediate_size": 16}}
    assert torch.equal(again(small, tmp_path)(IDS), small(IDS))


def test_fields_are_written_and_tidied() -> None:
    base: dict[str, Any] = {"num_hidden_layers": 2, "width": 8, "inside": {"width": 4}}
    by_layer = fields_by_layer(base, [("width",)])
    assert by_layer == [(("per_layer_config", "0", "width"),), (("per_layer_config", "1", "width"),)]
    assert fields_by_layer(base, [("inside", "width")]) == []
    assert fields_by_layer(base, [("width",), ("inside", "width")]) == []
    data = pinned(base, by_layer)
    assert data["per_layer_config"] == {"0": {"width": 8}, "1": {"width": 8}}
    assert tidied(data, base) == base
    data["per_layer_config"]["1"]["width"] = 6
    assert tidied(data, base) == {**base, "per_layer_config": {"1": {"width": 6}}}
    data["per_layer_config"]["0"]["width"] = 6
    assert tidied(data, base) == {**base, "width": 6}
    assert tidied(data, {**base, "per_layer_config": {}}) == {**base, "width": 6, "per_layer_config": {}}
    assert renumbered({"part": {"per_layer_config": {"02": {"width": 3}, "00": {}}}}, [1, 2]) == {
        ("part", "per_layer_config"): {"1": {"width": 3}}
    }
