"""Models whose forward reads its mode are analysed, cut and checked in both modes."""

from __future__ import annotations

import copy
import operator
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from tests.support import randomise, relative_error


class Block(nn.Module):
    """Returns a second result in training: a head of its own, or none."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.body, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.head = head

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.stem(x))

    def forward(self, x: torch.Tensor) -> Any:
        h = self.features(x)
        y = self.last(torch.relu(self.body(h)))
        return (y, self.head(h)) if self.head is not None and self.training else y


class Scaled(Block):
    """Drops whole examples in training, and divides its features into blocks there."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 4
        self.mix = nn.Linear(16, 16)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        if not self.training:
            return h
        parts = self.mix(h).view(x.shape[0], self.blocks, -1) * torch.rand(x.shape[0], 1, 1)
        return h + parts.flatten(1)


class EvaluationOnly(Block):
    """Smooths its features in evaluation, by a layer that training does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Linear(16, 16)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        h = super().features(x)
        return h if self.training else torch.tanh(self.smooth(h))


class Frozen(Block):
    """Keeps its head in evaluation mode, whatever mode it is set to."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        if self.head is not None:
            self.head.eval()
        return self


class NeedsTargets(Block):
    """Raises in training without targets, as detectors do."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        if not self.training:
            return super().forward(x)
        if targets is None:
            raise ValueError("targets are needed in training")
        y, other = super().forward(x)
        return F.mse_loss(y, targets) + F.mse_loss(other, targets)


KEY = "train" + "ing"


class Helper:
    """Is no module, and asks for the mode of one."""

    def __call__(self, net: nn.Module) -> bool:
        return net.training

    def ask(self, net: nn.Module) -> bool:
        return net.training


class Picking(Block):
    """Picks a channel by its number where a function says so."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.way = way

    def features(self, x: torch.Tensor) -> torch.Tensor:
        h = super().features(x)
        return h + h[:, 5:6] if self.way(self) else h


class Merging(Block):
    """Adds the product of two small matrices to a weight, in evaluation once for all."""

    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(16, 2)), nn.Parameter(torch.randn(2, 6))
        self.merged, self.decides = False, decides

    def train(self, mode: bool = True) -> Merging:
        if self.merged is mode:
            self.stem.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        if self.decides and float(x.sum()) > 1e9:
            return x
        h = self.stem(x)
        return torch.relu(h if self.merged else h + x @ self.down.T @ self.up.T)


def aux_head() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))


def ready(model: nn.Module) -> nn.Module:
    return randomise(model.double(), 7, weights=True).eval()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def error_in(training: bool, model: nn.Module, small: nn.Module, *inputs: Any) -> float:
    """The relative error against the masked original in one mode, with the same random numbers."""
    results = []
    for one in (small, fxprune.masked(model, fxprune.record(small).removed)):
        torch.manual_seed(5)
        results.append(copy.deepcopy(one).train(training)(*inputs))
    return relative_error(*results)


MODELS = {
    "auxiliary head": lambda: Block(aux_head()),
    "branch with a width": Scaled,
    "layer of evaluation": EvaluationOnly,
    "frozen head": lambda: Frozen(aux_head()),
}


@pytest.mark.parametrize("given_in", [True, False], ids=["given in training", "given in evaluation"])
@pytest.mark.parametrize("name", MODELS)
def test_the_small_model_equals_the_masked_one_in_both_modes(name: str, given_in: bool) -> None:
    model, x = ready(MODELS[name]()).train(given_in), numbers(4, 6)
    small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, path="eager")
    made = fxprune.record(small)
    assert made.removed["stem.weight"][0]
    for training in (True, False):
        assert error_in(training, model, small, numbers(3, 6)) < 1e-9, training
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert not [reason for reason in made.reasons if "not reached" in reason or "not looked at" in reason]


def test_what_only_training_reaches_is_cut() -> None:
    small = fxprune.transform(ready(Block(aux_head())), numbers(4, 6), ratio=0.5, path="eager")
    assert small.get_submodule("head.0").weight.shape == (5, 8)
    assert small.get_submodule("head.0").in_features == 8
    assert small.get_submodule("head.1").num_features == 5


def test_both_modes_are_named_the_given_one_first() -> None:
    model = ready(Block(aux_head()))
    assert fxprune.analyze(model, numbers(4, 6), path="eager").modes == ("evaluation", "training")
    assert fxprune.analyze(model.train(), numbers(4, 6), path="eager").modes == ("training", "evaluation")


def test_layers_of_torch_alone_need_no_second_run() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    assert fxprune.analyze(model, torch.randn(4, 6), path="eager").modes == ("evaluation",)


def test_a_statistic_that_needs_two_values_gets_every_example_twice() -> None:
    analysis = fxprune.analyze(ready(Block(aux_head())), numbers(1, 6), path="eager")
    assert analysis.modes == ("evaluation", "training")
    assert [walked.inputs[0][0].shape[0] for walked in analysis.walked] == [1, 2]
    assert not analysis.notes


def test_the_first_call_of_a_module_is_that_in_the_given_mode() -> None:
    analysis = fxprune.analyze(ready(Block(aux_head())), numbers(1, 6), path="eager")
    visits = analysis.observed.visits
    assert visits["stem"].output.shape == (1, 16)
    assert visits["head.0"].output.shape == (2, 10)


def test_reasons_that_hold_in_training_alone_say_so() -> None:
    model = ready(Block(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))))
    analysis = fxprune.analyze(model, numbers(4, 6), path="eager")
    (reasons,) = {group.reasons for group in analysis.groups if group.name == "stem"}
    assert reasons
    assert all(reason.endswith("(in training mode)") for reason in reasons)
    assert not [str(locked) for locked in analysis.locked if "training" in str(locked)]


class TestForwardRaisesInTraining:
    """Training is not looked at if forward needs other inputs there."""

    def test_the_record_says_that_training_was_not_looked_at(self) -> None:
        small = fxprune.transform(ready(NeedsTargets(aux_head())), numbers(4, 6), ratio=0.5, path="eager")
        (reason,) = [r for r in fxprune.record(small).reasons if "not looked at" in r]
        assert reason == (
            "training mode was not looked at, because forward raises there: ValueError: targets are needed in training"
        )

    def test_other_inputs_can_give_what_training_needs(self) -> None:
        model, x, targets = ready(NeedsTargets(aux_head())), numbers(4, 6), numbers(4, 3)
        small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, path="eager", also=[(x, targets)])
        assert not [r for r in fxprune.record(small).reasons if "not looked at" in r]
        assert small.get_submodule("head.0").in_features == 8
        assert error_in(True, model, small, x, targets) < 1e-9

    def test_nothing_remains_of_a_run_that_failed_halfway(self) -> None:
        class Halfway(Block):
            def forward(self, x: torch.Tensor) -> Any:
                if self.training:
                    assert self.head is not None
                    self.head[0](self.features(x))
                    raise RuntimeError("halfway")
                return super().forward(x)

        model = ready(Halfway(aux_head()))
        analysis = fxprune.analyze(model, numbers(4, 6), path="eager")
        assert "halfway" in analysis.notes[0]
        assert not analysis.has_axis("head.0.weight", 0)
        assert not [name for name in analysis.observed.visits if name.startswith("head")]

    def test_a_train_method_that_raises_is_told(self) -> None:
        class Fixed(Block):
            def train(self, mode: bool = True) -> Fixed:
                if mode:
                    raise RuntimeError("for inference only")
                return self

            def forward(self, x: torch.Tensor) -> Any:
                return super().forward(x) if not self.training else x

        model = Fixed()
        for module in model.modules():
            module.training = False
        assert "for inference only" in fxprune.analyze(model, torch.randn(4, 6), path="eager").notes[0]


class TestTheOtherModeDecidesByNumbers:
    """Fake tensors have no numbers, so such a mode is walked on real ones."""

    class Decides(Block):
        def __init__(self, decides_in: bool) -> None:
            super().__init__()
            self.extra, self.decides_in = nn.Linear(16, 16), decides_in

        def features(self, x: torch.Tensor) -> torch.Tensor:
            h = super().features(x)
            return self.extra(h) if self.training == self.decides_in and h.min().item() > -1.0 else h

    @pytest.mark.parametrize("given", [False, True])
    def test_what_only_that_mode_reaches_is_cut(self, given: bool) -> None:
        model, x = ready(self.Decides(not given)).train(given), numbers(4, 6)
        small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1)
        assert type(small) is type(model)
        assert not [r for r in fxprune.record(small).reasons if "not looked at" in r]
        assert small.extra.weight.shape == (8, 8)
        for training in (True, False):
            assert error_in(training, model, small, numbers(5, 6)) < 1e-9

    def test_a_graph_says_that_it_was_not_looked_at(self) -> None:
        model = ready(nn.Sequential(self.Decides(True), nn.ReLU(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
        small = fxprune.transform(model, numbers(4, 6), ratio=0.5, path="fx")
        reason = (
            "training mode was not looked at, because forward decides by numbers there, which the analysis of a graph"
        )
        assert [r for r in fxprune.record(small).reasons if r.startswith(reason)]

    def test_what_training_writes_into_parameters_stays_in_the_copy(self) -> None:
        class Average(self.Decides):
            def features(self, x: torch.Tensor) -> torch.Tensor:
                h = super().features(x)
                if self.training and h.min().item() > -1.0:
                    self.extra.weight.data.mul_(0.9).add_(0.1)
                return h

        for training in (True, False):
            model = ready(Average(True)).train(training)
            before = copy.deepcopy(model.state_dict())
            fxprune.transform(model, numbers(4, 6), ratio=0.5)
            assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_size_that_only_training_writes_down_holds_channels() -> None:
    class Written(Block):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            h = super().features(x)
            return h.view(-1, 4, 4).flatten(1) if self.training else h

    model, x = ready(Written()), numbers(4, 6)
    small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, path="eager")
    for training in (True, False):
        assert error_in(training, model, small, numbers(3, 6)) < 1e-9
    assert "in training mode" in " ".join(fxprune.record(small).reasons)


def test_a_graph_of_one_mode_says_so() -> None:
    analysis = fxprune.analyze(ready(Block(aux_head())), numbers(4, 6), path="export")
    assert analysis.modes == ("evaluation",)
    assert [n for n in analysis.notes if n.startswith("the graph is that of evaluation mode")]


def test_a_reason_that_holds_in_both_modes_names_none() -> None:
    class Looked(Block):
        def __init__(self) -> None:
            super().__init__(aux_head())
            self.table = nn.Embedding(9, 6)

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(self.table(x))

    analysis = fxprune.analyze(ready(Looked()), torch.arange(4), path="eager")
    assert analysis.modes == ("evaluation", "training")
    assert not [str(locked) for locked in analysis.locked if "training" in str(locked)]


@pytest.mark.parametrize("draw", [lambda: torch.rand([]), lambda: torch.rand(1), random.random, np.random.rand])
def test_layers_that_training_skips_at_random_are_seen(draw: Any) -> None:
    class Skips(Block):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])

        def features(self, x: torch.Tensor) -> torch.Tensor:
            h = super().features(x)
            for layer in self.extra:
                if self.training and draw() < 0.05:
                    continue
                h = h + layer(h)
            return h

    model, x = ready(Skips()), numbers(4, 6)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, path="eager")
    assert not [reason for reason in fxprune.record(small).reasons if "not looked at" in reason]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


class TestAModeThatIsNotRead:
    """Code that names `training`, and comes to it with other settings alone."""

    class Dropping(Block):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.features(x)
            if self.rate > 0:
                h = F.dropout(h, self.rate, self.training)
            return self.tail(h)

        def tail(self, h: torch.Tensor) -> torch.Tensor:
            return self.last(self.body(h))

    def test_is_not_walked(self) -> None:
        analyses = [fxprune.analyze(self.Dropping(rate).eval(), torch.randn(4, 6), path="eager") for rate in (0.0, 0.5)]
        assert [analysis.modes for analysis in analyses] == [("evaluation",), ("evaluation", "training")]

    def test_a_mode_that_is_read_elsewhere_is_walked(self) -> None:
        class OfAnother(self.Dropping):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.tail(F.dropout(self.features(x), 0.5, self.stem.training))

        class ByName(self.Dropping):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.tail(F.dropout(self.features(x), 0.5, vars(self)["training"]))

        class Own(self.Dropping):
            def train(self, mode: bool = True) -> Own:
                self.rate = 0.5 * mode
                return super().train(mode)

        class InAThread(self.Dropping):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                read = []
                thread = threading.Thread(target=lambda: read.append(self.training))
                thread.start()
                thread.join()
                return self.tail(F.dropout(self.features(x), 0.5, read[0]))

        class Noting(self.Dropping):
            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, value)
                if name == "training":
                    self.__dict__["rate"] = 0.5 * value

        for kind in (OfAnother, ByName, Own, InAThread, Noting):
            assert fxprune.analyze(kind(0.0).eval(), torch.randn(4, 6), path="eager").modes == (
                "evaluation",
                "training",
            )

    def test_a_mode_that_no_class_of_the_model_names_is_walked(self) -> None:
        ways: dict[str, Any] = {
            "helper": Helper(),
            "method of a helper": lambda net: Helper().ask(net),
            "table": lambda net: {"asks": lambda module: module.training}["asks"](net),
            "name in a variable": lambda net: getattr(net, KEY),
            "attrgetter": operator.attrgetter(KEY),
            "vars": lambda net: vars(net)[KEY],
            "copy": lambda net: copy.copy(net).__dict__[KEY],
        }
        for name, way in ways.items():
            model, x = ready(Picking(way)), numbers(4, 6)
            assert fxprune.analyze(model, x, path="eager").modes == ("evaluation", "training"), name
            small = fxprune.transform(model, x, ratio=0.5, path="eager")
            assert small.stem.weight.shape == (16, 6), name
            assert error_in(True, model, small, x) < 1e-9, name

    def test_a_hook_that_is_an_object_is_walked(self) -> None:
        class Doubling:
            def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
                return output * 2 if module.training else output

        model = self.Dropping(0.0).eval()
        model.stem.register_forward_hook(Doubling())
        assert fxprune.analyze(model, torch.randn(4, 6), path="eager").modes == ("evaluation", "training")

    def test_a_train_method_that_tells_the_mode_by_another_name_is_run_by_the_proof(self) -> None:
        class Told(Block):
            doubles = False

            def train(self, mode: bool = True) -> Told:
                self.doubles = mode
                return super().train(mode)

            def features(self, x: torch.Tensor) -> torch.Tensor:
                h = super().features(x)
                if self.doubles and not isinstance(h, torch._subclasses.FakeTensor):
                    ran.append(h.shape[1])
                return h * 2 if self.doubles else h

        ran: list[int] = []
        small = fxprune.transform(ready(Told()), numbers(4, 6), ratio=0.5, path="eager")
        assert ran == [16, 8]
        assert fxprune.record(small).reasons == ()

    @pytest.mark.parametrize("decides", [False, True], ids=["on fake tensors", "on real ones"])
    def test_a_train_method_that_writes_into_weights_leaves_those_of_the_model(self, decides: bool) -> None:
        model, x = ready(Merging(decides)), numbers(4, 6)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        small = fxprune.transform(model, x, ratio=0.5, importance="random", seed=1, path="eager")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert small.up.shape == (8, 2)
        masked = fxprune.masked(model, fxprune.record(small).removed)
        for training in (True, False, True):
            assert relative_error(small.train(training)(x), masked.train(training)(x)) < 1e-9

    def test_dropout_that_decides_for_the_user_counts(self) -> None:
        class Asked(Block):
            def __init__(self) -> None:
                super().__init__()
                self.asked = nn.Dropout(1.0)

            def features(self, x: torch.Tensor) -> torch.Tensor:
                h = super().features(x)
                return h if float(self.asked(torch.ones((), dtype=x.dtype))) else h + h[:, 5:6]

        model = ready(Asked())
        assert fxprune.analyze(model, numbers(4, 6), path="eager").modes == ("evaluation", "training")

    def test_a_method_that_reads_it_is_walked_in_both(self) -> None:
        class Two(self.Dropping):
            def noisy(self, x: torch.Tensor) -> torch.Tensor:
                return self.tail(F.dropout(self.features(x), 0.5, self.training))

        methods = {"noisy": torch.randn(4, 6)}
        analysis = fxprune.analyze(Two(0.0).eval(), torch.randn(4, 6), path="eager", methods=methods)
        walked = [(run.method, run.training) for run in analysis.groups[0]._findings.walked]
        assert walked == [("", False), ("noisy", False), ("noisy", True)]
