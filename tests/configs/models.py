"""Small models with a config, and what a process without fxprune loads from a directory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.models import transformers_zoo as zoo
from tests.support import torchvision

_LOADING = """
import sys

class NoFxprune:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fxprune":
            raise ImportError("there is no fxprune here")

sys.meta_path.insert(0, NoFxprune())
import torch

try:
    import torchvision
except Exception:  # its operators do not fit the torch that is installed
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import transformers

for folder, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        model = getattr(transformers, kind).from_pretrained(folder).eval()
        with torch.no_grad():
            result = model(**torch.load(folder + "/inputs.pt"))
    except Exception as error:
        print(folder, kind, type(error).__name__, error, file=sys.stderr)
        continue
    torch.save(model.state_dict(), folder + "/state.pt")
    torch.save([value for value in result.to_tuple() if isinstance(value, torch.Tensor)], folder + "/result.pt")
"""


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """A small model of `transformers` with random numbers in all its parameters, in float32, and its inputs."""
    torchvision()  # which it imports
    model, inputs = zoo.build(name)
    fresh = type(model)(model.config).double()
    for buffer, made in zip(model.buffers(), fresh.buffers(), strict=True):
        buffer.copy_(made)  # they are no weights: what a file does not have is computed again
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        if name in dict(model.named_parameters()):
            model.get_parameter(name).data.copy_(fresh.get_parameter(name))
    model = model.float().eval()
    model.config.dtype = torch.float32
    return model, {name: v.float() if v.is_floating_point() else v for name, v in inputs.items()}


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
"""Sizes that many configs of language models have."""


def decoder(family: str, **sizes: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A small language model of a family with random numbers, and inputs."""
    torchvision()  # which it imports
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model, {"input_ids": torch.randint(0, 90, (2, 7))}


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors that a model of `transformers` returns."""
    return [value for value in result.to_tuple() if isinstance(value, torch.Tensor)]


@dataclass(frozen=True)
class Loaded:
    """The state of a model that a process without fxprune has loaded, and the tensors that it returns there."""

    state: dict[str, torch.Tensor]
    results: list[torch.Tensor]


def loaded_elsewhere(folders: dict[Path, str], inputs: list[dict[str, Any]]) -> list[Loaded]:
    """The models that a process that cannot import fxprune loads. folders: folder -> class."""
    for folder, given in zip(folders, inputs, strict=True):
        torch.save(given, folder / "inputs.pt")
    said = load_elsewhere(folders)
    assert all((folder / "result.pt").exists() for folder in folders), said[-3000:]
    return [Loaded(torch.load(folder / "state.pt"), torch.load(folder / "result.pt")) for folder in folders]


def load_elsewhere(folders: dict[Path, str]) -> str:
    """Loads models in a process that cannot import fxprune, and writes what each returns beside it.

    Returns the errors of that process.
    """
    words = [word for folder, kind in folders.items() for word in (str(folder), kind)]
    made = subprocess.run([sys.executable, "-c", _LOADING, *words], capture_output=True, text=True, check=False)
    return made.stderr
