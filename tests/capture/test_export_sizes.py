"""The sizes that an exported graph takes: others raise torch's own error, and never give numbers."""

from __future__ import annotations

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error


class Steps(nn.Module):
    """A loop over time: the number of steps is written into an exported graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 16)
        for t in range(x.shape[1]):
            h = torch.tanh(0.5 * h + self.a(x[:, t]))
        return self.b(h)


class Half(nn.Module):
    """Decides by the height of an image, and takes the argument `flip`."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x, flip: bool = False):
        y = torch.relu(self.a(x))
        if x.shape[2] == 8:
            y = y * 2
        return self.b(y.flip(3) if flip else y)


class Twins(nn.Module):
    """Two inputs of one length, which is folded into rows of four."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x, y):
        h = torch.relu(self.a(x + y)).reshape(-1, 4, 16)
        return self.b(h).sum(1)


def exported(model, inputs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FixedSizesWarning)
        return fxprune.transform(model, inputs, **({"ratio": 0.5, "path": "export"} | options))


def twin_inputs(batch, length):
    return torch.randn(batch, length, 6).double(), torch.randn(batch, length, 6).double()


CASES = {
    "steps": (Steps, lambda n: torch.randn(n, 5, 4).double(), torch.randn(2, 8, 4).double()),
    "height": (Half, lambda n: torch.randn(n, 3, 8, 6).double(), torch.randn(2, 3, 10, 6).double()),
    "an argument": (
        Half,
        lambda n: (torch.randn(n, 3, 8, 6).double(), True),
        (torch.randn(2, 3, 8, 6).double(), False),
    ),
    "unequal lengths": (
        Twins,
        lambda n: twin_inputs(n, 8),
        (torch.randn(2, 8, 6).double(), torch.randn(2, 1, 6).double()),
    ),
    "no multiple": (Twins, lambda n: twin_inputs(n, 8), twin_inputs(1, 6)),
}


def call(model, inputs):
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("name", CASES)
def test_another_size_raises_torchs_own_error_and_another_batch_is_right(name):
    make, inputs, others = CASES[name]
    model = make().double().eval()
    small = exported(model, inputs(2))
    reference = fxprune.masked(model, fxprune.record(small).removed)
    for batch in (1, 2, 3):
        given = inputs(batch)
        assert relative_error(call(small, given), call(reference, given)) < 1e-12
    with pytest.raises((AssertionError, RuntimeError)):
        call(small, others)


def test_a_deep_copy_and_a_pickle_raise_too():
    small, longer = exported(Steps().eval(), torch.randn(2, 5, 4)), torch.randn(2, 8, 4)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (small, copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert other(torch.randn(3, 5, 4)).shape == (3, 3)
        with pytest.raises(AssertionError, match=r"Guard failed: x.size\(\)\[1\] == 5"):
            other(longer)


def test_a_result_that_is_pruned_and_exported_again_raises_too():
    small = exported(Steps().eval(), torch.randn(2, 5, 4))
    again = fxprune.transform(small, torch.randn(2, 5, 4), ratio=0.5)
    assert again.get_submodule("a").out_features == 4
    program = torch.export.export(again, (torch.randn(2, 5, 4),)).module()
    for other in (again, program):
        with pytest.raises(AssertionError, match="Guard failed"):
            other(torch.randn(2, 8, 4))


def test_what_was_fixed_is_in_the_reasons_and_in_one_warning():
    with pytest.warns(fxprune.FixedSizesWarning) as caught:
        small = fxprune.transform(Steps().eval(), torch.randn(2, 5, 4), ratio=0.5, path="export")
    sentence = "the input x keeps its size 5 in dimension 1"
    assert sentence in fxprune.record(small).reasons
    assert [sentence in str(warning.message) for warning in caught] == [True]
    assert "dimension 2" not in str(caught[0].message), "the model itself takes four features only"


def test_nothing_is_said_of_sizes_that_stay_open():
    small = fxprune.transform(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), ratio=0.5, path="export"
    )
    assert fxprune.record(small).reasons == ()


def test_an_argument_that_is_no_tensor_is_named():
    small = exported(Half().eval(), (torch.randn(2, 3, 8, 6), True))
    assert any("the argument flip is the constant True" in reason for reason in fxprune.record(small).reasons)


def test_height_and_width_of_an_image_stay_open():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1)
    )
    model = model.double().eval()
    small = fxprune.transform(model, torch.randn(2, 3, 24, 20).double(), ratio=0.5, path="export")
    reference = fxprune.masked(model, fxprune.record(small).removed)
    for size in ((1, 3, 24, 20), (3, 3, 31, 18)):
        x = torch.randn(size).double()
        assert relative_error(small(x), reference(x)) < 1e-12


class Attention(nn.Module):
    """Tokens behind a learnt one, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.first, self.positions = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(1, 6, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), 1) + self.positions
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.b(torch.relu(self.a(x[:, 0])))


def test_a_batch_of_one_leaves_the_batch_open_also_behind_attention():
    model = Attention().double().eval()
    small = fxprune.transform(model, torch.randn(1, 5, 8).double(), ratio=0.5, path="export")
    reference = fxprune.masked(model, fxprune.record(small).removed)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 5, 8).double()
        assert relative_error(small(x), reference(x)) < 1e-12


class Merged(nn.Module):
    """Merges its batch into the rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(1, -1, 8))


def test_a_model_that_merges_its_batch_is_exported():
    small = exported(Merged().eval(), torch.randn(1, 3, 4))
    assert small(torch.randn(1, 3, 4)).shape == (1, 3, 2)


class Windows(nn.Module):
    """Pads an image to a multiple of seven and splits it into windows, as hierarchical transformers do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        for _ in range(4):
            n, h, w, c = x.shape
            x = nn.functional.pad(x, (0, 0, 0, -w % 7, 0, -h % 7))
            rows, columns = x.shape[1] // 7, x.shape[2] // 7
            x = x.view(n, rows, 7, columns, 7, c).transpose(2, 3).reshape(n, rows * 7, columns * 7, c)
            x = x[:, ::2, ::2]
        return self.b(torch.relu(self.a(x)))


def test_height_and_width_are_fixed_where_their_formulas_grow_long(monkeypatch):
    monkeypatch.setattr("fxprune.capture.exported_sizes.FORMULA", 20)
    model = Windows().eval()
    with pytest.warns(fxprune.FixedSizesWarning, match="formula of more than 20 operations"):
        small = fxprune.transform(model, torch.randn(2, 28, 30, 3), ratio=0.5, path="export")
    assert small(torch.randn(3, 28, 30, 3)).shape == model(torch.randn(3, 28, 30, 3)).shape
    with pytest.raises(AssertionError, match="Guard failed"):
        small(torch.randn(2, 35, 30, 3))


class Grid(nn.Module):
    """The number of rows is a rounded number: of a root, as in DiT, or of a fraction."""

    def __init__(self, rows):
        super().__init__()
        self.a, self.b, self.rows = nn.Linear(3, 16), nn.Linear(16, 2), rows

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h.view(h.shape[0], self.rows(h.shape[1]), -1, h.shape[-1])).mean(2)


@pytest.mark.parametrize(
    "rows",
    [lambda n: int(n**0.5), lambda n: math.floor(n / 4), lambda n: math.ceil(n / 4), lambda n: round(n / 4)],
    ids=["int", "floor", "ceil", "round"],
)
@pytest.mark.filterwarnings("ignore::fxprune.FixedSizesWarning")
def test_guards_round_numbers(rows):
    net, x = Grid(rows).double().eval(), torch.randn(2, 16, 3).double()
    small = fxprune.transform(net, x, ratio=0.5, path="export")
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert relative_error(small(x), reference(x)) < 1e-12
    with pytest.raises(AssertionError, match="Guard failed"):
        small(torch.randn(2, 25, 3).double())
