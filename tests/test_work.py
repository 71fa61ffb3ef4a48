"""The work of `transform` is counted, so that a change that adds to it is seen: `python -m tests.test_work` writes it.

Counts do not depend on how fast or busy a machine is. A change that raises one changes `tests/golden/work.json` too,
and says why in its message. They are those of one version of torch; on others only the runs of the model are compared.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import fxprune
from fxprune.capture import fake_operations
from fxprune.capture.walk import Run
from tests.support import torchvision

GOLDEN = Path(__file__).parent / "golden" / "work.json"
COPIES = ("aten::copy_", "aten::clone", "aten::index_select", "aten::index")

Made = tuple[nn.Module, Any]


def resnet() -> Made:
    return torchvision().models.resnet18(), torch.ones(1, 3, 64, 64)


def densenet() -> Made:
    return torchvision().models.DenseNet(8, (6, 12, 6), 16), torch.ones(1, 3, 64, 64)


def llama() -> Made:
    torchvision()  # which transformers imports
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=99, num_hidden_layers=4, **sizes)
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(8)[None]}


MODELS = {"resnet": resnet, "densenet": densenet, "llama": llama}


def work_of(make: Callable[[], Made], *, verify: bool) -> dict[str, int]:
    """The work of one call of `transform`, which is not the first one.

    forwards: runs of the model. fakes: operations on fake tensors that torch computes, of the model and around it, when
    no form of an operation is known. Without a proof also operations: all that torch dispatched; copies: those that
    copy numbers; bytes: of all tensors that were made. With a proof the last three depend on the processor.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = make()
    model.eval()
    found: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return function(*args, **kwargs)

        return call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fxprune.transform(model, inputs, ratio=0.3, verify=verify)
        with (
            mock.patch.object(FakeTensorMode, "dispatch", counted("fakes", FakeTensorMode.dispatch)),
            mock.patch.object(Run, "run", counted("forwards", Run.run)),
            mock.patch.dict(fake_operations._FORMS, clear=True),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        ):
            fxprune.transform(model, inputs, ratio=0.3, verify=verify)
    if not verify:
        for event in seen.profiler.kineto_results.events():
            found["operations"] += event.name().startswith("aten::")
            found["copies"] += event.name() in COPIES
            found["bytes"] += max(event.nbytes(), 0) if event.name() == "[memory]" else 0
    return dict(found)


def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.parametrize("verify", [False, True], ids=["without_proof", "with_proof"])
@pytest.mark.parametrize("name", MODELS)
def test_the_work_is_what_it_was(name: str, verify: bool) -> None:
    found = work_of(MODELS[name], verify=verify)
    wanted = golden()["work"][name]["with proof" if verify else "without proof"]
    if torch.__version__.partition("+")[0] == golden()["torch"]:
        assert found == wanted
    else:
        assert found["forwards"] == wanted["forwards"]


def calls_of(blocks: int) -> int:
    """The calls of Python functions, with those that resume a generator, in one `transform` of a chain of blocks."""
    model = nn.Sequential(*(block() for _ in range(blocks)), nn.Linear(8, 3)).eval()
    count = 0

    def saw(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    fxprune.transform(model, torch.ones(2, 8), ratio=0.3, verify=False)
    sys.setprofile(saw)
    try:
        fxprune.transform(model, torch.ones(2, 8), ratio=0.3, verify=False)
    finally:
        sys.setprofile(None)
    return count


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def test_calls_grow_as_the_model_does() -> None:
    few, more, many = (calls_of(blocks) for blocks in (10, 20, 40))
    assert 0 < many - more < 2.06 * (more - few)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {
        name: {"without proof": work_of(make, verify=False), "with proof": work_of(make, verify=True)}
        for name, make in MODELS.items()
    }
    version = torch.__version__.partition("+")[0]
    GOLDEN.write_text(json.dumps({"torch": version, "work": work}, indent=1) + "\n")
