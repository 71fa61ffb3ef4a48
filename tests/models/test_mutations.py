"""The proof on models of the zoos that were made wrong: one weight changed by 1 %, two kept slots exchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import measure, zoo
from tests.models.__main__ import parse, read, run_all
from tests.mutations import unseen_mutations

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

REPRESENTATIVE = """
    torchvision/squeezenet1_1 timm/test_vit timm/test_efficientnet timm/test_nfnet
    transformers/BertForMaskedLM transformers/LlamaForCausalLM transformers/T5ForConditionalGeneration
    detection/yolov8 torch.nn/attention_cross torch.nn/transformer_encoder
""".split()


def results(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    return [tensor for _, tensor in measure.tensors_of(measure.run(model, inputs))]


def mutated(entry: zoo.Entry, each: int = 2) -> dict[str, list[str]]:
    """The changes to the small model of an entry, and those that the proof did not see."""
    model, inputs = entry.build()
    tried = unseen_mutations(
        model, inputs, lambda m, x: [t for _, t in measure.tensors_of(measure.run(m, x))], each=each
    )
    return {
        "tried": list(tried.tried),
        "unseen": list(tried.unseen),
        "without_effect": list(tried.without_effect),
    }


@pytest.mark.parametrize("key", REPRESENTATIVE)
def test_the_proof_sees_every_change_that_matters(key: str) -> None:
    result = mutated(zoo.entries(key.split("/")[0])[key], each=1)
    assert len(result["tried"]) == 2
    assert result["unseen"] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", list(zoo.FAMILIES))
def test_the_proof_sees_every_change_that_matters_in_a_family(family: str, tmp_path: Path) -> None:
    if family not in zoo.installed():
        pytest.skip(f"the packages of {family} are no part of the test extra: install them by hand")
    options = parse([family, "--jobs", "1", "--results", str(tmp_path / "results.jsonl")])
    run_all(list(zoo.entries(family).values()), options, mutated)
    bad = {key: result for key, result in read(options.results).items() if result.get("unseen", ["no result"])}
    assert bad == {}
