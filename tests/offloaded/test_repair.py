"""The repair of models whose weights lie elsewhere: that of plain models, bit for bit."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

import fxprune
from fxprune._repair.pages import Pages
from fxprune.offloaded import StoredTensor
from fxprune.offloaded.places import InMemory
from tests.offloaded.nets import TOKENS, in_parts, net, on_disk, whole_blocks
from tests.processes import run_together
from tests.support import randomise


def batches(count: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 11, (8, 5), generator=generator) for _ in range(count)]


def devices(model: nn.Module) -> dict[str, torch.device]:
    return {name: tensor.device for name, tensor in model.state_dict(keep_vars=True).items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return bool(torch.equal(one(TOKENS), other(TOKENS)))


@pytest.mark.parametrize(
    ("way", "mode"),
    [(on_disk, "weights"), (in_parts, "bias"), (whole_blocks, "norms")],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_repair_is_that_of_plain_models(way: Any, mode: str, tmp_path: Path) -> None:
    model = randomise(net(), 0)
    plain = fxprune.transform(model, TOKENS, ratio=0.5)
    expected = fxprune.repair(plain, model, batches(), mode=mode)
    dispatched = way(model, tmp_path)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    made = fxprune.repair(small, dispatched, batches(), mode=mode, memory=0)  # one weight at a time
    assert same(made, expected)
    assert fxprune.record(made).repair == fxprune.record(expected).repair
    assert not any(isinstance(parameter, StoredTensor) for parameter in made.parameters())
    assert devices(made) == devices(small)
    other = copy.deepcopy(made)
    del made
    gc.collect()
    assert same(other, expected)
    assert same(small, plain)
    assert same(dispatched, model)


def test_transform_repairs_too(tmp_path: Path) -> None:
    model = randomise(net(), 0)
    expected = fxprune.transform(model, TOKENS, ratio=0.5, repair=batches())
    assert same(fxprune.transform(on_disk(model, tmp_path), TOKENS, ratio=0.5, repair=batches()), expected)


def test_refits_are_taken_back_where_the_outputs_get_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error of the outputs is larger than the one before, so all refits go."""
    model = randomise(net(), 0)
    dispatched = on_disk(model, tmp_path)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    errors = iter(range(1000))
    monkeypatch.setattr("fxprune._repair.layer_by_layer._Work.error", lambda self: min(next(errors), 1))
    made = fxprune.repair(small, dispatched, batches(), memory=0)
    done = fxprune.record(made).repair
    assert done is not None
    assert set(done.undone) == set(done.layers)
    assert same(made, small)


def test_the_mode_that_needs_all_weights_is_refused(tmp_path: Path) -> None:
    dispatched = on_disk(randomise(net(), 0), tmp_path)
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    with pytest.raises(fxprune.InputError, match='mode "outputs" is not possible here'):
        fxprune.repair(small, dispatched, batches(), mode="outputs")


def stored(values: torch.Tensor) -> StoredTensor:
    return StoredTensor(
        nn.Parameter(torch.empty(values.shape, device="meta")), "w", InMemory(values), torch.device("cpu")
    )


def test_as_many_weights_are_in_memory_as_the_limit_allows() -> None:
    model: Any = nn.Module()
    for number in range(4):
        model.register_parameter(f"w{number}", stored(torch.full((8,), float(number))))
    pages = Pages(2 * 32)
    plain: Any = pages.of(model)

    def there() -> list[int]:
        return [number for number in range(4) if getattr(plain, f"w{number}").untyped_storage().nbytes()]

    assert there() == []
    with torch.no_grad(), pages.mode():
        view = plain.w0.view(2, 4)
        assert float((plain.w0 + plain.w1).sum()) == 8
        assert there() == [0, 1]
        view.mul_(2).add_(5)
        assert float(plain.w2.sum()) == 16
        assert there() == [0, 2]
        assert float((plain.w1 * plain.w2 * plain.w3).sum()) == 48
        assert there() == [2, 3]
        assert torch.equal(view, torch.full((2, 4), 5.0))
        pages.close()
    assert there() == []
    assert model.w0.whole().tolist() == [5.0] * 8


def compare(rank: int, folder: Path) -> None:
    """Compare the repair of two processes with weights on disk with that of plain models."""
    model = randomise(net(), 0)
    plain = fxprune.transform(model, TOKENS, ratio=0.5)
    own, group = batches()[rank::2], distributed.group.WORLD
    expected = fxprune.repair(plain, model, own, process_group=group)
    dispatched = on_disk(model, folder / str(rank))
    small = fxprune.transform(dispatched, TOKENS, ratio=0.5)
    made = fxprune.repair(small, dispatched, own, memory=0, process_group=group)
    assert same(made, expected)


def test_two_processes_sum_their_moments(tmp_path: Path) -> None:
    run_together(compare, 2, tmp_path)
