"""Small checkpoints on the disk, and comparisons of what is loaded from a directory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

import fxprune
from tests.support import randomise, torchvision

VOCABULARY = 60


def library() -> Any:
    """The package transformers, without its bars and warnings."""
    torchvision()  # which it imports
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def config(family: str, **other: Any) -> Any:
    """The config of a small model of a family."""
    made = library()
    llama = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    llama |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if family == "Llama":
        return made.LlamaConfig(**{**llama, **other})
    if family == "Mixtral":
        return made.MixtralConfig(**{**llama, "num_local_experts": 4, **other})
    if family == "GptOss":
        wide = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16}
        return made.GptOssConfig(**{**llama, **wide, **other})
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": VOCABULARY}
    return made.GPT2Config(**{**small, "bos_token_id": 0, "eos_token_id": 0, **other})


def model_of(family: str, dtype: torch.dtype = torch.float32, **other: Any) -> Any:
    """A small causal language model with random numbers in all its parameters."""
    made = config(family, **other)
    kind = {"GPT2Config": "GPT2LMHeadModel"}.get(type(made).__name__, f"{family}ForCausalLM")
    return randomise(getattr(library(), kind)(made), 0).to(dtype).eval()


def tokens() -> dict[str, torch.Tensor]:
    """Inputs of such a model."""
    return {"input_ids": torch.randint(0, VOCABULARY, (2, 7))}


def saved(model: Any, folder: Path, shard: str = "12KB") -> Any:
    """The model, loaded from a directory that it was saved into, in several files."""
    model.save_pretrained(folder, max_shard_size=shard)
    return type(model).from_pretrained(folder, dtype="auto").eval()


def pruned(model: Any, **how: Any) -> tuple[Any, fxprune.Plan]:
    """A small model, and the plan that it was made by."""
    with torch.no_grad(), contextlib.suppress(FileNotFoundError):
        small = fxprune.transform(model, tokens(), verify=False, **how)
    return small, fxprune.record(small).plan


def loaded(kind: type[Any], folder: Path, *, config_says_it: bool) -> Any:
    """The model in a directory, by its own library or by fxprune."""
    if config_says_it:
        return kind.from_pretrained(folder, dtype="auto").eval()
    return fxprune.from_pretrained(folder)


def same_bits(one: Any, other: Any) -> bool:
    """True if two models have the same tensors, bit for bit and in the same types."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) and t.dtype == b[n].dtype for n, t in a.items())


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a directory, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
