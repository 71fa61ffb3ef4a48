"""A model that raises on its example inputs: an error that names the place, before there is a small model."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import _attempt
from fxprune.cli import main
from fxprune.proof.result import NoReferenceError


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok, self.up, self.down = nn.Embedding(10, 6), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.tok(ids)).relu())


GOOD, BAD = torch.tensor([[1, 2, 9]]), torch.tensor([[1, 2, 10]])


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"keep": {"params": 0.5}}, {"ratio": 0.5, "also": [GOOD]}])
def test_numbers_out_of_range_are_an_error_of_the_model(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fxprune.CaptureError, match="the model's forward raises") as caught:
            fxprune.transform(Words().eval(), BAD, **options)
    text = str(caught.value)
    assert f"at   tok ({__file__}:" in text
    assert "why  IndexError: index out of range" in text
    assert "their numbers, such as token ids" in text


def test_verify_names_the_place():
    model = Words().eval()
    small = fxprune.transform(model, GOOD, ratio=0.5)
    with pytest.raises(fxprune.CaptureError, match=r"raises\n  at   tok \("):
        fxprune.verify(model, small, BAD)


def test_the_command_writes_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--ratio", "0.5", "--input", "1x8:int64<90", "--output", "small.safetensors"]
    assert main(["prune", f"{__name__}:Words", *words]) != 0
    told = capsys.readouterr().err
    assert "check the numbers of --input" in told
    assert not list(tmp_path.iterdir())


def test_a_reference_that_raises_where_the_model_does_not_stays_a_warning(monkeypatch):
    def prove(*args, **options):
        raise NoReferenceError("IndexError: of its zeros")

    monkeypatch.setattr(_attempt, "prove", prove)
    with pytest.warns(fxprune.NotProvenWarning, match="reference, which does not run: IndexError: of its zeros"):
        small = fxprune.transform(Words().eval(), GOOD, ratio=0.5)
    assert small.up.out_features == 6


def test_a_model_that_raises_in_one_mode_alone_is_not_refused():
    class Trains(Words):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids if self.training else ids + 10)

    with pytest.warns(fxprune.NotProvenWarning, match="does not run: IndexError"):
        fxprune.transform(Trains().train(), GOOD, ratio=0.5, path="eager")


def test_a_model_without_numbers_is_taken_as_it_is():
    assert (
        fxprune.transform(Words().to("meta").eval(), BAD.to("meta"), ratio=0.5, importance="random").up.out_features
        == 6
    )


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.rnn, self.head = nn.Linear(4, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.up(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


def test_a_forward_that_decides_by_numbers_has_a_place_and_a_next_step():
    inputs = (torch.randn(2, 5, 4), torch.tensor([5, 3]))
    notes = fxprune.analyze(Packs().eval(), inputs, path="eager").notes
    (note,) = [text for text in notes if text.startswith("the forward decides by numbers at ")]
    assert f"({__file__}:" in note
    assert "pass inputs that do as `also=`" in note


class Viewed(Words):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids[:, 1:].view(-1, ids.shape[-1] - 1))

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.up(self.tok(ids))


class Bags(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.EmbeddingBag(10, 6), nn.Linear(6, 3))


IN_TURN = [(made, path) for made in (Words, Viewed, Bags) for path in (None, "fx", "export")]


@pytest.mark.parametrize(("made", "path"), IN_TURN)
@pytest.mark.parametrize("call", [fxprune.analyze, fxprune.cost])
def test_token_ids_are_checked_where_nothing_is_computed(call, made, path):
    call(made().eval(), GOOD, path=path)
    with pytest.raises(fxprune.CaptureError, match=r"the model's forward raises\n  at   (tok|0)") as caught:
        call(made().eval(), BAD, path=path)
    text = str(caught.value)
    assert "why  IndexError: index out of range in self: 10 is in the inputs, the table has rows 0 to 9" in text
    assert "their numbers, such as token ids" in text


def test_negative_ids_and_ids_of_other_inputs_and_methods_are_checked():
    for options in ({"also": [BAD]}, {"methods": {"encode": BAD}}, {}):
        with pytest.raises(fxprune.CaptureError, match="index out of range"):
            fxprune.analyze(Viewed().eval(), GOOD if options else GOOD - 3, **options)


def test_ids_that_forward_changes_are_not_judged():
    class Changes(Words):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids.clone().remainder_(10)) + super().forward(ids.remainder_(10))

    assert fxprune.analyze(Changes().eval(), BAD).groups
    assert fxprune.cost(Changes().eval(), BAD.clone()).macs


class Casts(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self[0].weight.dtype))


@pytest.mark.parametrize("path", [None, "eager", "fx", "export"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_of_another_dtype_than_the_weights_are_an_error_of_the_model(dtype, bias, path):
    layers = nn.Linear(8, 16, bias=bias), nn.ReLU(), nn.Linear(16, 3, bias=bias)
    x = torch.randn(2, 8).to(dtype)
    for call in (fxprune.analyze, fxprune.cost, functools.partial(fxprune.transform, ratio=0.5)):
        with pytest.raises(fxprune.CaptureError, match="mat1 and mat2 must have the same dtype, but got"):
            call(nn.Sequential(*layers).eval(), x, path=path)
    small = fxprune.transform(Casts(*layers).eval(), x, ratio=0.5, path=path)
    assert fxprune.verify(Casts(*layers).eval(), small, x) < 1e-9
