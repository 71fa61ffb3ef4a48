"""Two of every four weights: refusals in their order, and the packed form; the product itself needs a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.errors import PlanError
from fxprune.sparse import SemiStructuredLinear, sparsify
from fxprune.sparse.storage import semi_structured


def layer(outputs=32, inputs=64, dtype=torch.float16):
    """A linear layer with the two largest of every four weights."""
    dense = nn.Linear(inputs, outputs)
    groups = dense.weight.data.view(-1, 4)
    mask = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2).indices, 1.0)
    dense.weight.data = (groups * mask).view(outputs, inputs)
    return dense.to(dtype)


CASES = {
    "shape": (
        lambda: layer(30, 64, torch.float32),
        ["the weight is of no shape for layout semi_structured", "multiples of 32 rows and of 64 columns", "[30, 64]"],
    ),
    "pattern": (
        lambda: nn.Linear(64, 32),
        ["the weight does not have the pattern of layout semi_structured", "at most two may stay, and 4 do somewhere"],
    ),
    "type": (
        lambda: layer(dtype=torch.float32),
        ["layout semi_structured does not take torch.float32", "with `model.half()`"],
    ),
    "device": (
        layer,
        [
            "layout semi_structured needs CUDA",
            "on tensor cores alone",
            'move the model to a GPU first, or take layout "csr"',
        ],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refusals_come_in_this_order(case):
    make, sentences = CASES[case]
    with pytest.raises(PlanError) as error:
        sparsify(make(), layout="semi_structured")
    for sentence in sentences:
        assert sentence in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_packed_form_holds_the_weight_exactly(dtype):
    dense = layer(64, 128, dtype)
    packed = SemiStructuredLinear(dense.weight.detach(), dense.bias.detach())
    assert packed.packed.shape == (64, 64)
    assert torch.equal(packed.dense_weight(), dense.weight)
    back = packed.to_dense()
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    clone = copy.deepcopy(packed)
    other = layer(64, 128, dtype)
    clone.load_state_dict(SemiStructuredLinear(other.weight.detach(), other.bias.detach()).state_dict())
    assert torch.equal(clone.dense_weight(), other.weight)
    assert sorted(packed.state_dict()) == ["bias", "meta", "packed"]
    assert str(packed) == "SemiStructuredLinear(128, 64, bias=True, layout=semi_structured)"


def test_a_product_that_is_missing_or_wrong_is_refused(monkeypatch):
    dense = layer()
    packed = SemiStructuredLinear(dense.weight.detach(), dense.bias.detach())
    with pytest.raises(PlanError, match="this GPU or build of torch has no product of layout semi_structured"):
        semi_structured.check_product(packed, dense.weight.detach(), "Linear")
    exact = SemiStructuredLinear(dense.weight.detach(), dense.bias.detach())
    monkeypatch.setattr(exact, "forward", lambda x: F.linear(x, dense.weight, dense.bias))
    semi_structured.check_product(exact, dense.weight.detach(), "Linear")
    monkeypatch.setattr(exact, "forward", lambda x: F.linear(x, dense.weight.flip(0), dense.bias))
    with pytest.raises(PlanError, match=r"is wrong on this GPU(.|\n)*off the dense product by"):
        semi_structured.check_product(exact, dense.weight.detach(), "Linear")
