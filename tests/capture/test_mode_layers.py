"""An exported graph has one mode: the record and a warning name the layers that have two."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import fxprune
from fxprune.capture.mode_layers import fixed_mode_note, layer_reads_mode
from tests.support import randomise

TWO_MODES = {
    "dropout": lambda: nn.Dropout(0.1),
    "feature dropout": lambda: nn.FeatureAlphaDropout(0.1),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "recurrent": lambda: nn.LSTM(4, 4, 2, dropout=0.1),
    "attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
    "random slope": lambda: nn.RReLU(),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)).parametrizations.weight[0],
    "spectral norm by a hook": lambda: spectral_norm(nn.Linear(4, 4)),
    "a class of the user": lambda: type("Mine", (nn.Dropout,), {})(0.1),
}

ONE_MODE = {
    "no dropout": lambda: nn.Dropout(0.0),
    "batch norm without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm1d(4),
    "one recurrent layer": lambda: nn.GRU(4, 4, 2),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "one slope": lambda: nn.RReLU(0.2, 0.2),
    "layer norm": lambda: nn.LayerNorm(4),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.1),
}


@pytest.mark.parametrize("make", TWO_MODES.values(), ids=TWO_MODES)
def test_layers_with_two_modes(make) -> None:
    assert layer_reads_mode(make())


@pytest.mark.parametrize("make", ONE_MODE.values(), ids=ONE_MODE)
def test_layers_with_one_mode(make) -> None:
    assert not layer_reads_mode(make())


def net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return randomise(layers, 3).double().eval()


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_graph_names_the_layers_of_the_other_mode(training: bool) -> None:
    model, x = net().train(training), torch.randn(5, 4, dtype=torch.float64)
    with pytest.warns(fxprune.ClassLostWarning) as caught:
        small = fxprune.transform(model, x, ratio=0.5, path="export")
    mode, other = ("training", "evaluation") if training else ("evaluation", "training")
    note = f"the graph is that of {mode} mode: what 1 (BatchNorm1d), 3 (Dropout) would do otherwise in {other} mode"
    (text,) = (str(one.message) for one in caught)
    assert text.startswith(note)
    assert 'With `prefer="class"` the small model has both modes' in text
    assert f"call `model.{'eval' if training else 'train'}()` first" in text
    assert [reason for reason in fxprune.record(small).reasons if reason.startswith(note)]
    mean = small.get_submodule("1").running_mean.clone()
    small.train(not training)(x)
    assert torch.equal(small.get_submodule("1").running_mean, mean) is not training  # as the note says


def test_a_kept_class_has_both_modes_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = fxprune.transform(net(), torch.randn(5, 4, dtype=torch.float64), ratio=0.5)
    assert not [reason for reason in fxprune.record(small).reasons if "mode" in reason]


def test_a_layer_that_is_in_the_other_mode_already_does_not_count() -> None:
    model = net().train()
    model[1].eval()
    assert "what 3 (Dropout) would do" in fixed_mode_note(model)


def test_of_many_layers_three_are_named() -> None:
    text = fixed_mode_note(nn.Sequential(*(nn.Dropout(0.1) for _ in range(5))))
    assert "what 0 (Dropout), 1 (Dropout), 2 (Dropout) and 2 more would do" in text


class Called(nn.Module):
    """Layers with two modes, of which the first of each kind is never called, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.drop, self.idle_norm, self.norm = (
            nn.Dropout(),
            nn.Dropout(),
            nn.BatchNorm1d(8),
            nn.BatchNorm1d(8),
        )
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.drop(self.norm(self.drop(self.up(x)))))


@pytest.mark.parametrize("training", [True, False])
def test_layers_that_are_never_called_are_not_named(training: bool) -> None:
    analysis = fxprune.analyze(Called().train(training), torch.randn(5, 4), path="export")
    (text,) = (note for note in analysis.notes if note.startswith("the graph is that of"))
    assert "what drop (Dropout), norm (BatchNorm1d) would do" in text


def test_a_trace_that_fails_says_that_the_model_itself_can_be_passed() -> None:
    class Starred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros((1, *x.shape[1:]))

    with pytest.raises(fxprune.CaptureError, match="pass the model itself to `transform`"):
        fxprune.trace(Starred(), torch.ones(2, 3))
