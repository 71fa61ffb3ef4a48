"""Questions that code asks while a model runs are seen, whatever way it asks."""

from __future__ import annotations

import copy
import operator
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import is_grad_enabled, nn

from fxprune.capture.reads import Reads, watched_reads

KEY = "train" + "ing"


class Net(nn.Module):
    """Has a layer of torch and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Dropout(), Own()


class Own(nn.Module):
    pass


def in_a_thread(net: nn.Module) -> bool:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(net.training))
    thread.start()
    thread.join()
    return found[0]


def by_class(net: nn.Module) -> bool:
    match net:
        case Net(training=True):
            return True
    return False


MODES: dict[str, Callable[[nn.Module], bool]] = {
    "attribute": lambda net: net.training,
    "getattr": lambda net: getattr(net, KEY),
    "attrgetter": operator.attrgetter(KEY),
    "object": lambda net: object.__getattribute__(net, KEY),
    "match": by_class,
    "exec": lambda net: eval("net.training", {"net": net}),
    "thread": in_a_thread,
    "vars": lambda net: vars(net)[KEY],
    "get": lambda net: vars(net).get(KEY),
    "items": lambda net: dict(vars(net).items())[KEY],
    "values": lambda net: list(vars(net).values())[list(vars(net)).index(KEY)],
    "dict": lambda net: dict(net.__dict__)[KEY],
    "copied dict": lambda net: net.__dict__.copy()[KEY],
    "namespace": lambda net: types.SimpleNamespace(**vars(net)).training,
    "copy": lambda net: copy.copy(net).training,
    "deepcopy": lambda net: copy.deepcopy(net).training,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_seen_and_is_the_right_one(name: str, training: bool) -> None:
    net, reads = Net().train(training), Reads()
    before = vars(net)
    kept = dict(before)
    with watched_reads(net, reads, [], torchs=False):
        assert MODES[name](net) is training
    assert "" in reads.modes
    assert vars(net) is before
    assert before == kept


def test_the_module_that_was_read_is_named() -> None:
    net, reads = Net(), Reads()
    with watched_reads(net, reads, [], torchs=False):
        assert net.own.training
    assert reads.modes == {"own"}


def test_what_is_set_and_deleted_meanwhile_stays_so() -> None:
    net, reads = Net(), Reads()
    net.gone = 1
    with watched_reads(net, reads, [], torchs=False):
        net.eval()
        net.made = 2
        del net.gone
        with pytest.raises(AttributeError, match="gone"):
            operator.attrgetter("gone")(net)
    assert not any(module.training for module in net.modules())
    assert net.made == 2
    assert not hasattr(net, "gone")


@pytest.mark.parametrize("torchs", [True, False])
def test_layers_of_torch_count_where_it_is_said(torchs: bool) -> None:
    net, reads = Net(), Reads()
    with watched_reads(net, reads, [], torchs=torchs):
        net.first(torch.ones(2))
    assert reads.modes == ({"first"} if torchs else set())


THIS = types.ModuleType("file")
THIS.__dict__["asks"] = is_grad_enabled

GRADIENTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "is_grad_enabled": lambda h: torch.is_grad_enabled(),
    "another name": lambda h: THIS.asks(),
    "requires_grad": lambda h: h.requires_grad,
    "getattr": lambda h: getattr(h, "requires" + "_grad"),
    "is_leaf": lambda h: h.is_leaf,
    "grad_fn": lambda h: h.grad_fn,
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_question_for_gradients_is_seen(name: str) -> None:
    reads = Reads()
    h = torch.ones(2, requires_grad=True) * 2
    with watched_reads(nn.Identity(), reads, [THIS], torchs=False):
        assert GRADIENTS[name](h) is not None
    assert reads.gradients
    assert THIS.asks is is_grad_enabled
    assert not {"requires_grad", "is_leaf", "grad_fn"} & vars(torch.Tensor).keys()


def test_parameters_layers_of_torch_and_contexts_do_not_count() -> None:
    layers = nn.ModuleList([nn.MultiheadAttention(4, 2, batch_first=True), nn.TransformerEncoderLayer(4, 2)]).eval()
    weight, x, reads = nn.Parameter(torch.ones(2)), torch.ones(1, 3, 4), Reads()
    with watched_reads(layers, reads, [], torchs=False), torch.no_grad():
        assert weight.requires_grad
        layers[0](x, x, x)
        layers[1](x)
        F.relu(x).requires_grad_()
    assert not reads.gradients


@pytest.mark.parametrize("ask", [lambda h: torch.is_inference_mode_enabled(), lambda h: h.is_inference()])
def test_a_question_for_inference_mode_is_seen(ask: Any) -> None:
    reads = Reads()
    with watched_reads(nn.Identity(), reads, [], torchs=False):
        assert ask(torch.ones(2)) is False
    assert reads.inference
