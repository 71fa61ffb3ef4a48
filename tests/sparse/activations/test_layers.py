"""The threshold layer: outputs, gradients, rules of the threshold, and saved state."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import fxprune
from fxprune.errors import InputError, PlanError
from fxprune.schedules import AGP, Constant, Linear
from fxprune.sparse.activations.layers import ThresholdActivation, step_thresholds
from fxprune.sparse.activations.thresholds import Histogram, Quantile, Scheduled, sampled


def plain(x, threshold, magnitude):
    """The definition, element by element."""
    y = [0.0 if (abs(v) if magnitude else v) < threshold else v for v in x.flatten().tolist()]
    return torch.tensor(y, dtype=x.dtype).view(x.shape)


def share(x, threshold, magnitude=True):
    return sum((abs(v) if magnitude else v) < threshold for v in x.flatten().tolist()) / x.numel()


# -- the layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5), ()])
def test_outputs_and_gradients_follow_the_definition(magnitude, shape, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    threshold = 0.5  # a number of every type
    layer = ThresholdActivation(threshold, magnitude=magnitude)
    assert torch.equal(layer(x), plain(x, threshold, magnitude))
    zeros = sum(v == 0 for v in plain(x, threshold, magnitude).flatten().tolist()) / max(x.numel(), 1)
    assert layer.zeros.item() == pytest.approx(zeros, abs=1e-6)


def test_values_equal_to_the_threshold_survive_and_so_does_nan():
    layer = ThresholdActivation(0.5)
    x = torch.tensor([0.5, -0.5, math.nextafter(0.5, 0), math.nan, math.inf, -math.inf], dtype=torch.float64)
    assert layer(x).tolist()[:3] == [0.5, -0.5, 0.0]
    assert layer(x)[3].isnan()
    assert layer(x).tolist()[4:] == [math.inf, -math.inf]


def test_a_threshold_of_zero_on_signed_values_is_a_relu():
    x = torch.randn(50)
    assert torch.equal(ThresholdActivation(0.0, magnitude=False)(x), torch.relu(x))
    below = ThresholdActivation(-0.3, magnitude=False)
    assert torch.equal(below(x), plain(x, -0.3, False))


@pytest.mark.parametrize("rule", [0.4, Quantile(0.6), Histogram(0.6)], ids=str)
@pytest.mark.parametrize("magnitude", [True, False])
def test_gradients_pass_where_the_activation_survived(rule, magnitude):
    layer = ThresholdActivation(rule, magnitude=magnitude)
    x = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    slope = torch.randn(6, 9, dtype=torch.float64)
    (y * slope).sum().backward()
    assert 0 < (y == 0).sum() < y.numel()
    assert torch.equal(x.grad, torch.where(y == 0, 0, slope))


@pytest.mark.parametrize("magnitude", [True, False])
def test_gradients_pass_the_numeric_check_away_from_the_threshold(magnitude):
    x = torch.randn(40, dtype=torch.float64)
    x = x[(x.abs() - 0.5).abs() > 0.01].requires_grad_()
    assert len(x) > 20
    layer = ThresholdActivation(0.5, magnitude=magnitude)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_an_empty_batch_changes_nothing():
    layer = ThresholdActivation(Quantile(0.5))
    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    assert layer.batches == 0
    assert layer.zeros.isnan()


def test_nothing_is_counted_where_it_is_not_asked_for():
    layer = ThresholdActivation(0.5, track=False)
    layer(torch.randn(5))
    assert layer.zeros.isnan()


# -- schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [Constant(0.3), Linear(0.0, 0.7, steps=4), AGP(0.1, 0.9, steps=5, begin=2), lambda step: step / 10]
)
def test_step_follows_the_schedule(schedule):
    layer = ThresholdActivation(schedule)
    x = torch.randn(100, dtype=torch.float64)
    for step in range(10):
        assert layer.threshold.item() == pytest.approx(schedule(step), abs=1e-7)
        assert layer.steps == step
        assert torch.equal(layer(x), plain(x, layer.threshold.item(), True))
        layer.step()


def test_step_thresholds_steps_all():
    net = nn.Sequential(ThresholdActivation(Linear(0, 1, steps=2)), nn.ReLU(), ThresholdActivation(0.2))
    assert step_thresholds(net) == 2
    assert [net[0].threshold.item(), net[2].steps.item()] == [0.5, 1]


# -- quantiles of batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("sparsity", [0.07, 0.5, 0.8, 0.95])
def test_a_quantile_sets_exactly_its_share_to_zero(sparsity, magnitude):
    layer = ThresholdActivation(Quantile(sparsity), magnitude=magnitude)
    for size in (1, 10, 61, 1000):
        x = torch.randn(size)
        gone = (layer(x) == 0).sum().item()
        assert abs(gone - min(size - 1, sparsity * size)) <= 0.5 or gone == size - 1


def test_evaluation_uses_the_running_quantile():
    layer = ThresholdActivation(Quantile(0.6, momentum=0.3)).double()
    running = None
    for _ in range(5):
        x = torch.randn(4, 25, dtype=torch.float64) * torch.rand(())
        batch = sorted(abs(v) for v in x.flatten().tolist())[60]
        running = batch if running is None else 0.7 * running + 0.3 * batch
        assert torch.equal(layer(x), plain(x, batch, True))
        assert layer.threshold.item() == pytest.approx(running, rel=1e-12)
    layer.eval()
    x = torch.randn(30, dtype=torch.float64)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert torch.equal(layer(x), plain(x, layer.threshold.item(), True))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items() if name != "zeros")


def test_zeros_behind_a_relu_count_as_the_smallest():
    layer = ThresholdActivation(Quantile(0.3))
    x = torch.relu(torch.randn(1000))
    assert torch.equal(layer(x), x)
    assert layer.zeros.item() == pytest.approx((x == 0).double().mean().item())
    assert layer.zeros > 0.4


def test_the_target_follows_a_schedule_whatever_the_type_of_the_model():
    layer = ThresholdActivation(Quantile(Linear(0.0, 0.8, steps=2))).half()
    x = torch.randperm(1000).half() + 1
    for target in (0.0, 0.4, 0.8, 0.8):
        assert (layer(x) == 0).sum() == 1000 * target
        layer.step()


def test_more_elements_than_torch_quantile_takes():
    x = torch.randn(17 * 2**20)
    layer = ThresholdActivation(Quantile(0.8))
    y = layer(x)  # torch.quantile takes no more than 2^24 elements before torch 2.14
    assert (y == 0).double().mean().item() == pytest.approx(0.8, abs=5 * math.sqrt(0.8 * 0.2 / 65536))


@pytest.mark.parametrize("size", [4097, 5000, 8191, 100_003, 2**17])
def test_a_sample_is_one_element_of_each_stretch(size):
    places = sampled(torch.arange(size, dtype=torch.float64), 4096).long()
    edges = torch.arange(4097) * size // 4096
    assert ((edges[:-1] <= places) & (places < edges[1:])).all()


@pytest.mark.parametrize("width", [2, 3, 16, 64, 100, 128, 4096])
def test_a_sample_meets_every_column(width):
    x = torch.arange(2**20) % width  # constant along every column
    found = torch.bincount(sampled(x.float(), 65536).long(), minlength=width) / 65536
    expected = torch.bincount(x, minlength=width) / 2**20
    assert ((found - expected).abs() < 6 * (expected / 65536).sqrt()).all()


def test_the_error_of_a_sample_is_that_of_the_docstring():
    errors = []
    for _ in range(40):
        x = torch.rand(10_007)
        layer = ThresholdActivation(Quantile(0.8, sample=1000))
        errors.append((layer(x) == 0).double().mean().item() - 0.8)
    assert max(map(abs, errors)) < 4 * math.sqrt(0.8 * 0.2 / 1000)
    assert abs(sum(errors) / 40) < 4 * math.sqrt(0.8 * 0.2 / 1000 / 40)


# -- running histograms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_a_histogram_finds_the_quantile(sparsity, magnitude, scale):
    x = (torch.randn(20_000) - 0.3) * scale
    layer = ThresholdActivation(Histogram(sparsity), magnitude=magnitude)
    y = layer(x)
    exact = (x.abs() if magnitude else x).double().quantile(sparsity).item()
    assert abs(layer.threshold.item() - exact) <= abs(exact) * (2 ** (1 / 32) - 1)
    assert (y == 0).double().mean().item() == pytest.approx(sparsity, abs=0.02)


def test_a_histogram_is_that_of_recent_batches():
    rule = Histogram(0.5, momentum=0.25, per_octave=4)
    layer = ThresholdActivation(rule).double()
    expected = None
    for _ in range(4):
        x = torch.randn(300, dtype=torch.float64) * 3
        counts = torch.zeros(2 * 256 + 1, dtype=torch.float64)
        for v in x.tolist():
            counts[256 + 1 + math.floor((math.log2(abs(v)) + 32) * 4)] += 1 / 300
        expected = counts if expected is None else 0.75 * expected + 0.25 * counts
        layer(x)
        assert torch.allclose(layer.histogram, expected, atol=1e-12, rtol=0)
    threshold = layer.threshold.item()
    below = [i for i in range(513) if i > 256 and 2 ** ((i - 256) / 4 - 32) <= threshold * (1 + 1e-9)]
    assert expected[below].sum() <= 0.5 + 1e-9
    assert expected[: max(below) + 2].sum() >= 0.5 - 1e-9
    layer.eval()
    layer(torch.randn(10, dtype=torch.float64))
    assert layer.threshold.item() == threshold


def test_a_histogram_holds_signs_zeros_and_values_beyond_its_range():
    layer = ThresholdActivation(Histogram(0.5, per_octave=2), magnitude=False)
    layer(torch.tensor([0.0, 1e-20, -1e-20, math.nan, 1e20, math.inf, -1e20, 2.0, -2.0]))
    counts = (layer.histogram * 9).round().long()
    assert counts[128] == 4
    assert counts[-1] == 2
    assert counts[0] == 1
    assert counts[128 + 1 + 66] == 1
    assert counts[128 - 1 - 66] == 1
    assert counts.sum() == 9


def test_a_histogram_without_a_target_yet_sets_nothing_to_zero():
    layer = ThresholdActivation(Histogram(Linear(0.0, 0.5, steps=1)))
    x = torch.randn(1000)
    assert torch.equal(layer(x), x)
    assert layer.threshold == 0
    layer.step()
    assert (layer(x) == 0).double().mean().item() == pytest.approx(0.5, abs=0.02)


# -- state, copies, compile, the pass ---------------------------------------------------------------------

RULES = [0.2, Scheduled(Linear(0.0, 1.0, steps=5)), Quantile(AGP(0.1, 0.8, steps=5)), Histogram(0.7, per_octave=4)]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_state_dict_goes_on_where_it_was(rule):
    layer, x = ThresholdActivation(rule), torch.randn(500)
    for _ in range(3):
        layer(x)
        layer.step()
    other = ThresholdActivation(rule)
    other.load_state_dict(layer.state_dict())
    duplicate = copy.deepcopy(layer)
    for again in (other, duplicate):
        assert torch.equal(again.eval()(x), layer.eval()(x))
    for each in (layer, other, duplicate):
        each.train()
        each(2 * x)
        each.step()
        each(x)
    for again in (other, duplicate):
        assert {k: v.tolist() for k, v in again.state_dict().items()} == {
            k: v.tolist() for k, v in layer.state_dict().items()
        }


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_no_graph_breaks_and_no_recompilation_by_steps(rule):
    torch._dynamo.reset()
    counter = CompileCounter()
    layer = ThresholdActivation(rule)
    plain_layer = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for _ in range(4):
        x = torch.randn(40, 5, requires_grad=True)
        same = x.detach().clone().requires_grad_()
        y, expected = compiled(x), plain_layer(same)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(x.grad, same.grad)
        layer.step()
        plain_layer.step()
    assert torch.equal(layer.threshold, plain_layer.threshold)
    assert counter.frame_count == 1


def test_fullgraph_on_the_eager_backend():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), ThresholdActivation(Quantile(0.8)))
    x = torch.randn(7, 5)
    for mode in (True, False):
        net.train(mode)
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_channels_of_a_model_with_thresholds_can_be_removed(path):
    net = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.ReLU(), ThresholdActivation(Quantile(0.7)), nn.Conv2d(8, 6, 3), nn.SiLU()),
        *(ThresholdActivation(0.1), nn.Flatten(), nn.Linear(24, 3)),
    )
    x = torch.randn(4, 2, 6, 6)
    net(x)
    small = fxprune.transform(net.eval(), x, ratio=0.5, path=path)
    assert fxprune.verify(net, small, torch.randn(3, 2, 6, 6)) < 1e-12
    if path == "fx":
        assert small.get_submodule("2").threshold == net[2].threshold
        assert small.get_submodule("0").out_channels == 4
        assert isinstance(small.get_submodule("2"), ThresholdActivation)


# -- refusals ---------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: ThresholdActivation(-0.1), "the threshold must be at least 0, not -0.1"),
    (lambda: ThresholdActivation(0), "the threshold is 0\n  at   ThresholdActivation\n  why  no magnitude is below it"),
    (lambda: ThresholdActivation(math.nan), "must be a finite number, not nan"),
    (lambda: ThresholdActivation("0.1"), "threshold must be a number or a function of the step, not str"),
    (lambda: ThresholdActivation(True), "threshold must be a number or a function of the step, not bool"),
    (
        lambda: ThresholdActivation(Quantile),
        "the threshold is the class Quantile\n  at   threshold=Quantile\n  why  a class has no settings yet\n"
        "  do   pass one of it: Quantile(...)",
    ),
    (lambda: ThresholdActivation(0.1, magnitude="no"), "magnitude must be True or False, not 'no'"),
    (lambda: ThresholdActivation(0.1, track=1), "track must be True or False, not 1"),
    (lambda: Quantile(1.0), "the sparsity must be in [0, 1), not 1.0"),
    (lambda: Quantile(0.0), "the sparsity is 0\n  at   Quantile\n  why  nothing would ever go"),
    (lambda: Quantile("0.3"), "sparsity must be a number or a function of the step, not str"),
    (lambda: Quantile(0.3, momentum=0), "momentum must be a number in (0, 1], not 0"),
    (lambda: Quantile(0.3, sample=0), "sample must be an integer of at least 1, not 0"),
    (lambda: Histogram(-0.1), "the sparsity must be in [0, 1), not -0.1"),
    (lambda: Histogram(0.1, momentum=2), "momentum must be a number in (0, 1], not 2"),
    (lambda: Histogram(0.1, per_octave=0), "per_octave must be an integer from 1 to 512, not 0"),
    (lambda: step_thresholds(nn.ReLU()), "the model has no ThresholdActivation"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_thresholds_refuse_bad_arguments(call, text):
    with pytest.raises(PlanError) as caught:
        call()
    assert text in str(caught.value)


def test_a_bad_value_of_a_schedule_is_refused_at_its_step_and_leaves_the_layer_as_it_was():
    layer = ThresholdActivation(lambda step: 0.5 - step)
    with pytest.raises(PlanError, match=r"at least 0, not -0\.5\n  at   step 1"):
        layer.step()
    assert [layer.steps.item(), layer.threshold.item()] == [0, 0.5]


def test_an_object_that_is_no_model_is_refused():
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not list"):
        step_thresholds([ThresholdActivation(0.1)])
