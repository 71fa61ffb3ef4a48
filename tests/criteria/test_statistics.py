"""Statistics of activations against plain loops, the points where they are recorded, and the model afterwards."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune import progress
from fxprune.criteria.activation import ActivationStatistics, importance_from
from fxprune.criteria.by_layer import scores_by_layer
from fxprune.criteria.statistics import activation_statistics
from fxprune.errors import InputError, PlanError
from fxprune.sparse.activations.layers import ThresholdActivation
from tests.support import randomise


def plain(outputs, dim, threshold=0.0):
    """Share of zeros and mean magnitude per channel of some tensors, number by number."""
    zeros, sizes, count = {}, {}, 0
    for y in outputs:
        rows = y.movedim(dim, 0).reshape(y.shape[dim], -1).tolist()
        for channel, row in enumerate(rows):
            zeros[channel] = zeros.get(channel, 0) + sum(abs(v) <= threshold for v in row)
            sizes[channel] = sizes.get(channel, 0.0) + math.fsum(abs(v) for v in row)
        count += len(rows[0])
    channels = range(len(zeros))
    return [zeros[c] / count for c in channels], [sizes[c] / count for c in channels], count


def agrees(found, outputs, dim, threshold=0.0):
    zeros, sizes, count = plain(outputs, dim, threshold)
    assert found.count == count
    assert found.calls == len(outputs)
    assert found.zeros.tolist() == pytest.approx(zeros, abs=1e-12)
    assert found.mean_abs.tolist() == pytest.approx(sizes, rel=1e-12)


class Residual(nn.Module):
    """A stem, a block around a shortcut, pooling before an activation, and a head: what is behind each layer differs.

    `look` makes it one that symbolic tracing cannot follow.
    """

    def __init__(self, look=False):
        super().__init__()
        self.look = look
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.pooled = nn.Conv2d(4, 5, 3)
        self.plain = nn.Conv2d(5, 7, 1)
        self.norm3 = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.forward_and_inside(x)[-1]

    def forward_and_inside(self, x):
        if self.look and x.sum() > 1e9:
            return (x,)
        stem = F.relu(self.norm(self.stem(x)))
        inner = self.act(self.conv1(stem))
        summed = self.norm2(self.conv2(inner))
        summed += stem
        out = torch.relu(summed)
        pooled = F.gelu(F.max_pool2d(self.pooled(out), 2))
        last = self.norm3(self.plain(pooled))
        return stem, inner, out, pooled, last, self.head(last.mean((2, 3)))


BEHIND = {
    "stem": ("relu", 0),
    "conv1": ("act", 1),
    "conv2": ("relu_1", 2),
    "pooled": ("gelu", 3),
    "plain": ("norm3", 4),
    "head": ("head", 5),
}


def residual(look=False):
    return randomise(Residual(look), seed=11).double()


def images(*sizes):
    return [torch.randn(n, 2, 8, 8).double() for n in sizes]


def collect(model, loader, **options):
    return activation_statistics(model, loader, **{"progress": False, **options})


# -- against plain loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_activations_are_taken_behind_the_activation_that_follows(threshold):
    net, batches = residual(), images(3, 5, 1)
    found = collect(net, batches, threshold=threshold)
    net.eval()
    with torch.no_grad():
        inside = [net.forward_and_inside(x) for x in batches]
    assert list(found) == list(BEHIND)
    assert (found.path, found.why_not, found.batches, found.missing) == ("fx", "", 3, ())
    for layer, (at, place) in BEHIND.items():
        assert (found[layer].layer, found[layer].at) == (layer, at)
        agrees(found[layer], [values[place] for values in inside], 1, threshold)
    assert 0.05 < found["stem"].sparsity < 0.95
    assert found["stem"].sparsity == pytest.approx(sum(plain([v[0] for v in inside], 1, threshold)[0]) / 4)


def test_activations_are_taken_at_the_layer_itself_without_through():
    net, batches = residual(), images(3, 2)
    found = collect(net, batches, through=False, where=["conv1", "act"])
    net.eval()
    assert [s.at for s in found.values()] == ["conv1", "act"]
    with torch.no_grad():
        stems = [net.forward_and_inside(x)[0] for x in batches]
        agrees(found["conv1"], [net.conv1(stem) for stem in stems], 1)  # before it changes in place
        agrees(found["act"], [torch.relu(net.conv1(stem)) for stem in stems], 1)


def test_without_a_graph_the_layers_are_taken_as_they_are():
    net, batches = residual(look=True), images(3, 2)
    found = collect(net, batches, where=[nn.Conv2d, "head"])
    net.eval()
    assert found.path == "hooks"
    assert found.why_not.startswith("Residual cannot be traced symbolically; TraceError: ")
    assert all(s.at == s.layer for s in found.values())
    with torch.no_grad():
        inside = [net.forward_and_inside(x) for x in batches]
        agrees(found["stem"], [net.stem(x) for x in batches], 1)
        agrees(found["conv1"], [net.conv1(values[0]) for values in inside], 1)
        agrees(found["head"], [values[5] for values in inside], 1)


@pytest.mark.parametrize(
    ("layer", "shape", "dim"),
    [
        (lambda: nn.Conv1d(3, 4, 2), (2, 3, 7), 1),
        (lambda: nn.Conv1d(3, 4, 2), (3, 7), 0),
        (lambda: nn.Conv2d(3, 4, 2), (2, 3, 7, 6), 1),
        (lambda: nn.Conv3d(3, 4, 2), (2, 3, 5, 4, 6), 1),
        (lambda: nn.ConvTranspose1d(3, 4, 2), (2, 3, 7), 1),
        (lambda: nn.ConvTranspose2d(3, 4, 2), (2, 3, 4, 5), 1),
        (lambda: nn.ConvTranspose3d(3, 4, 2), (2, 3, 4, 5, 3), 1),
        (lambda: nn.Linear(3, 4), (3,), 0),
        (lambda: nn.Linear(3, 4), (5, 3), 1),
        (lambda: nn.Linear(3, 4), (2, 5, 3), 2),
        (lambda: nn.Linear(3, 4), (2, 5, 6, 3), 3),
    ],
)
def test_the_dimension_of_channels_is_found(layer, shape, dim):
    net = nn.Sequential(layer(), nn.Dropout(), nn.ReLU()).double()
    x = torch.randn(shape).double()
    y = net.eval()(x).detach()
    net.train()
    for where in ("0", nn.ReLU):
        found = collect(net, [x], where=where)
        agrees(next(iter(found.values())), [y], dim)


def test_a_layer_that_is_called_several_times_adds_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.other, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            first = self.act(self.shared(x))
            return self.act(self.shared(first)) + self.other(x).tanh()

    net, x = Twice().double(), torch.randn(9, 4).double()
    with torch.no_grad():
        first = net.shared(x).relu()
        both = [first, net.shared(first).relu()]
    found = collect(net, [x], where=["shared", "act"])
    agrees(found["shared"], both, 1)
    agrees(found["act"], both, 1)
    assert found["shared"].at == "act"
    assert collect(net, [x])["other"].at == "tanh"


def test_a_threshold_behind_the_activation_counts():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), ThresholdActivation(0.4), nn.Linear(5, 2)).double()
    x = torch.randn(20, 3).double()
    found = collect(net, [x])
    assert found["0"].at == "2"
    agrees(found["0"], [net[:3](x).detach()], 1)


def test_without_an_activation_they_are_taken_behind_the_norm_that_follows_at_once():
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)]
    net = randomise(nn.Sequential(*layers), seed=2).double()
    x = torch.randn(3, 2, 4, 4).double()
    found = collect(net, [x])
    assert found["0"].at == "1"
    agrees(found["0"], [net.eval()[:2](x).detach()], 1)


def test_nodes_that_are_broadcast_or_used_twice_are_not_followed():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 4)

        def forward(self, x):
            y = self.two(x)
            return torch.relu(self.one(x) + y) + y

    net, x = Wide().double(), torch.randn(6, 3).double()
    found = collect(net, [x])
    assert [s.at for s in found.values()] == ["one", "two"]
    agrees(found["one"], [net.one(x).detach()], 1)
    agrees(found["two"], [net.two(x).detach()], 1)


def test_layers_inside_a_leaf_of_the_graph_are_taken_by_hooks():
    net = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).double()
    x = torch.randn(2, 5, 8).double()
    found = collect(net, [x, x])
    assert found.path == "fx"
    assert found.missing == ("1.self_attn.out_proj",)
    seen = []
    handle = net[1].linear1.register_forward_hook(lambda m, a, made: seen.append(made.detach()))
    net.eval()
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    net(x)
    torch.backends.mha.set_fastpath_enabled(before)
    handle.remove()
    agrees(found["1.linear1"], 2 * seen, 2)
    with pytest.raises(PlanError, match='no batch went through what is named\n  at   "1\\.self_attn\\.out_proj"'):
        collect(net, [x], where="1.self_attn.out_proj")
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_inf_and_nan_show_in_the_statistics():
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU()).requires_grad_(False)
    net[0].weight.copy_(torch.tensor([[1.0], [math.nan]]))
    found = collect(net, [torch.tensor([[1.0], [-9.0]])])["0"]
    assert found.zeros.tolist() == [0.5 if net[0].bias[0] < 8 else 0.0, 0.0]
    assert found.mean_abs[1].isnan()


# -- what `where` means -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "layers"),
    [
        ("conv?", ["conv1", "conv2"]),
        (nn.Linear, ["head"]),
        (["head", nn.ReLU], ["act", "head"]),
        ("", None),
        (nn.Module, [*BEHIND, "act", "norm", "norm2", "norm3"]),
        ("*", [*BEHIND, "act"]),
        ("norm", ["norm"]),
    ],
    ids=str,
)
def test_where_names_layers_in_every_way(where, layers):
    if layers is None:
        with pytest.raises(PlanError, match='where names nothing: ""'):
            collect(residual(), images(1), where=where)
    else:
        assert sorted(collect(residual(), images(1), where=where)) == sorted(layers)


def test_a_module_stands_for_the_layers_inside():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2))
    for where in ("0", net[0]):
        assert list(collect(net, [torch.randn(2, 3)], where=where)) == ["0.0"]
    assert list(collect(net, [torch.randn(2, 3)], where="0*")) == ["0.0", "0.1"]


def test_the_dimension_of_an_activation_without_a_layer_before_it():
    net = nn.Sequential(nn.ReLU())
    x = torch.randn(2, 5, 3).double()
    with pytest.raises(
        PlanError, match=r'which dimension of "0" holds the channels is not known\n  why  it makes \(2, 5, 3\)'
    ):
        collect(net, [x], where="0")
    agrees(collect(net, [x], where="0", channel_dim=1)["0"], [x.relu()], 1)
    agrees(collect(net, [x[0]], where="0")["0"], [x[0].relu()], 1)
    with pytest.raises(PlanError, match='"0" has no dimension 3'):
        collect(net, [x], where="0", channel_dim=3)


def test_a_norm_layer_that_is_named_is_taken_as_it_is():
    net, batches = residual(), images(3)
    found = collect(net, batches, where=["norm", nn.ReLU])
    net.eval()
    with torch.no_grad():
        agrees(found["norm"], [net.norm(net.stem(x)) for x in batches], 1)


def test_an_activation_that_is_not_of_torch():
    class Square(nn.Module):
        def forward(self, x):
            return x.square() if x.sum() < 1e9 else x

    net, x = nn.Sequential(nn.Linear(3, 4), Square()).double(), torch.randn(2, 3).double()
    agrees(collect(net, [x], where="1")["1"], [net(x).detach()], 1)
    agrees(collect(net, [x], where=Square)["1"], [net(x).detach()], 1)
    assert list(collect(net, [x], where="*")) == ["0"]


def test_one_activation_for_several_widths():
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 6), act)
    with pytest.raises(PlanError, match='"1" is called with 4 and with 6 channels'):
        collect(net, [torch.randn(2, 3)], where=nn.ReLU)
    assert list(collect(net, [torch.randn(2, 3)])) == ["0", "2"]


# -- loaders ----------------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, scale=1.0):
        return torch.relu(self.layer(x) * scale)


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (lambda x: x, {}),
        (lambda x: (x, torch.zeros(5)), {}),
        (lambda x: [x, torch.zeros(5)], {}),
        (lambda x: {"x": x}, {}),
        (lambda x: ({"x": x}, 7), {}),
        (lambda x: {"image": x, "label": 3}, {"prepare": lambda batch: batch["image"]}),
        (lambda x: (x, 2.0), {"prepare": lambda batch: batch}),
        (lambda x: {"x": x, "scale": 2.0, "label": 1}, {"prepare": lambda b: {"x": b["x"], "scale": b["scale"]}}),
    ],
)
def test_batches_of_every_kind_are_taken(batch, options):
    net, x = Named().double(), torch.randn(5, 3).double()
    scale = 2.0 if "prepare" in options and "image" not in batch(x) else 1.0
    with torch.no_grad():
        expected = net(x, scale)
    agrees(collect(net, [batch(x)], **options)["layer"], [expected], 1)


def test_a_data_loader_and_a_generator_are_taken_up_to_a_limit():
    net, x = Named().double(), torch.randn(10, 3).double()
    with torch.no_grad():
        expected = net(x)
    agrees(collect(net, DataLoader(TensorDataset(x, x), batch_size=4))["layer"], expected.split(4), 1)
    agrees(collect(net, (part for part in x.split(4)))["layer"], expected.split(4), 1)
    found = collect(net, (part for part in x.split(4)), limit=2)
    agrees(found["layer"], expected[:8].split(4), 1)
    assert found.batches == 2


def test_the_progress_bar_is_on_stderr(capsys, monkeypatch):
    activation_statistics(Named(), [torch.randn(2, 3)] * 3)
    assert capsys.readouterr() == ("", ""), "no terminal, no bar"
    monkeypatch.setattr(progress, "shown", lambda: True)
    activation_statistics(Named(), [torch.randn(2, 3)] * 3)
    printed, shown = capsys.readouterr()
    assert printed == ""
    assert "activation statistics: 100%" in shown
    assert "3/3" in shown
    collect(Named(), [torch.randn(2, 3)])
    assert capsys.readouterr() == ("", "")


# -- afterwards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [False, True])
def test_the_model_is_as_it_was(look):
    net = residual(look)
    net.train()
    net.norm.eval()
    net.conv1.weight.grad = torch.ones_like(net.conv1.weight)
    modes = [m.training for m in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect(net, images(2))
    with pytest.raises(RuntimeError):
        collect(net, [*images(2), torch.randn(2, 3, 8, 8).double()])
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.conv1.weight.grad, torch.ones_like(net.conv1.weight))
    assert [p.grad is None for p in net.parameters()].count(False) == 1
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.is_grad_enabled()


def test_results_are_data():
    found = collect(residual(), images(2))
    assert isinstance(found, ActivationStatistics)
    assert len(found) == 6
    file = io.BytesIO()
    torch.save({name: (s.zeros, s.mean_abs) for name, s in found.items()}, file)
    file.seek(0)
    assert torch.equal(torch.load(file)["stem"][0], found["stem"].zeros)
    lines = found.table().splitlines()
    assert lines[0].split() == "layer taken at channels values each zeros least most mean |x|".split()
    row = lines[2].split()
    assert row[:4] == ["stem", "relu", "4", "128"]
    s = found["stem"]
    shares = (s.sparsity, float(s.zeros.min()), float(s.zeros.max()), float(s.mean_abs.mean()))
    assert row[4:] == [f"{value:.3f}" for value in shares]


REFUSED = [
    (lambda net: collect("net", []), InputError, "the model must be a torch.nn.Module, not str"),
    (lambda net: collect(net, []), InputError, "the loader has no batches"),
    (lambda net: collect(net, 3), InputError, "the loader must be an iterable of batches, not int"),
    (lambda net: collect(net, torch.zeros(2, 3)), InputError, "not Tensor\n  do   pass a DataLoader, or a list"),
    (lambda net: collect(net, [3]), InputError, "int is neither a tensor"),
    (lambda net: collect(net, [{"y": torch.zeros(2, 3)}]), InputError, "do not fit Named.forward"),
    (lambda net: collect(net, [torch.zeros(0, 3)]), InputError, "an example input is empty"),
    (lambda net: collect(net, [torch.zeros(2, 3)], where="lay"), PlanError, 'did you mean "layer"?'),
    (lambda net: collect(net, [torch.zeros(2, 3)], threshold=-1), PlanError, "a finite number of at least 0, not -1"),
    (lambda net: collect(net, [torch.zeros(2, 3)], threshold="a"), PlanError, "at least 0, not 'a'"),
    (lambda net: collect(net, [torch.zeros(2, 3)], limit=0), PlanError, "limit must be an integer of at least 1"),
    (lambda net: collect(net, [torch.zeros(2, 3)], channel_dim=1.0), PlanError, "channel_dim must be an integer"),
    (lambda net: collect(net, [torch.zeros(2, 3)], device="meta"), InputError, "the model is on cpu, not on meta"),
    (lambda net: collect(net.to("meta"), [torch.zeros(2, 3)]), InputError, "the model is on the meta device"),
    (lambda net: collect(nn.ReLU(), [torch.zeros(2, 3)]), PlanError, "no convolutions and no linear layers"),
    (
        lambda net: collect(nn.Sequential(nn.Sequential(nn.Flatten())), [], where="0"),
        PlanError,
        'look at in "0"',
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_statistics_refuse_bad_arguments(call, kind, text):
    with pytest.raises(kind) as caught:
        call(Named())
    assert text in str(caught.value)


# -- as an importance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apoz", "mean"])
def test_importance_against_a_plain_loop(kind):
    net, batches = residual().eval(), images(6, 4)
    found = collect(net, batches)
    importance = importance_from(found, kind)
    groups = {g.name: g for g in fxprune.analyze(net, batches[0]).groups}
    assert list(groups) == ["stem", "conv1", "pooled", "plain"]
    with torch.no_grad():
        inside = [net.forward_and_inside(x) for x in batches]

    def expected(*places):
        found = [plain([values[place] for values in inside], 1) for place in places]
        scores = [[1 - z for z in zeros] if kind == "apoz" else sizes for zeros, sizes, _ in found]
        return [sum(column) / len(column) for column in zip(*scores, strict=True)]

    assert importance(groups["stem"]).tolist() == pytest.approx(expected(0, 2))  # tied to conv2 by the sum
    assert importance(groups["conv1"]).tolist() == pytest.approx(expected(1))
    if kind == "mean":
        assert importance(groups["plain"]).tolist() == pytest.approx(expected(4))
    else:
        with pytest.raises(PlanError, match='nothing is ever zero in a group\n  at   group "plain"'):
            importance(groups["plain"])


def test_the_channels_with_most_zeros_are_removed():
    net, batches = residual().eval(), images(20)
    found = collect(net, batches, where=["stem", "conv1", "conv2"])
    small = fxprune.transform(
        net, batches[0], ratio={"stem": 0.5, "conv1": 0.5}, importance=importance_from(found, "apoz")
    )
    gone = fxprune.record(small).removed
    order = found["conv1"].zeros.argsort(descending=True)
    assert gone["conv1.weight"][0] == sorted(order[:3].tolist())
    both = (found["stem"].zeros + found["conv2"].zeros).argsort(descending=True)
    assert gone["stem.weight"][0] == sorted(both[:2].tolist())


def test_a_channel_that_is_never_active_is_removed_first_and_nothing_changes():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).double().eval()
    with torch.no_grad():
        net[0].bias[[1, 4]] = -1e3
        net[0].weight[[1, 4]] *= 10  # which the norm of its weights would keep
    x = images(4)
    found = collect(net, x)
    assert (found["0"].zeros == 1).nonzero().flatten().tolist() == [1, 4]
    small = fxprune.transform(net, x[0], ratio=1 / 3, importance=importance_from(found))
    assert fxprune.record(small).removed["0.bias"][0] == [1, 4]
    assert torch.allclose(small(x[0]), net(x[0]), atol=1e-12)


def test_several_outputs_in_one_channel_count_by_their_mean():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x).view(-1, 2, 4).sum(1))

    net = Grid()
    groups = {g.kind: g for g in fxprune.analyze(net, torch.randn(1, 3)).groups}
    scores = torch.rand(8)
    importance = scores_by_layer({"layer": scores})
    assert torch.allclose(importance(groups["blocks"]), scores.double().view(2, 4).mean(1))
    assert torch.allclose(importance(groups["block width"]), scores.double().view(2, 4).mean(0))


def test_tied_and_parametrized_layers_are_found():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2))
    found = collect(normed, [torch.randn(40, 3)])
    group = fxprune.analyze(normed, torch.randn(1, 3)).groups[0]
    assert torch.allclose(importance_from(found)(group), 1 - found["0"].zeros)
    found = collect(tied, [torch.randn(40, 4)], where="2")
    groups = fxprune.analyze(tied, torch.randn(1, 4)).groups
    assert all(torch.isfinite(importance_from(found)(group)).all() for group in groups)


def test_statistics_of_an_activation_stand_for_a_layer_without_a_graph():
    net, batches = residual(look=True), images(6)
    found = collect(net, batches, where=["act", "conv1"], channel_dim=1)
    importance = importance_from(found, layers={"conv1": "act"})
    net.eval()
    group = next(g for g in fxprune.analyze(net, batches[0]).groups if g.name == "conv1")
    assert torch.equal(importance(group), 1 - found["act"].zeros)
    with pytest.raises(PlanError, match="nothing is ever zero in a group"):
        importance_from(found)(group)


def test_importance_from_refuses_what_it_cannot_use():
    net, batches = residual().eval(), images(3)
    found = collect(net, batches, where="conv1")
    with pytest.raises(PlanError, match="statistics cannot be a dict"):
        importance_from(dict(found))
    with pytest.raises(PlanError, match="unknown kind 'l2'"):
        importance_from(found, "l2")
    with pytest.raises(PlanError, match='there are no statistics of "akt"'):
        importance_from(found, layers={"conv1": "akt"})
    with pytest.raises(PlanError) as caught:
        fxprune.transform(net, batches[0], ratio=0.5, importance=importance_from(found))
    text = str(caught.value)
    assert "no activation statistics of a group" in text
    assert 'groups "stem", ' in text
    assert 'its layers are "stem", "norm", "conv2", "norm2"' in text
    assert "ignore='stem'" in text
    other = Residual()
    other.conv1, other.conv2 = nn.Conv2d(4, 9, 3, padding=1), nn.Conv2d(9, 4, 3, padding=1)
    group = next(g for g in fxprune.analyze(other.eval(), torch.randn(1, 2, 8, 8)).groups if g.name == "conv1")
    with pytest.raises(PlanError, match='"conv1" has 9 outputs, and there are activation statistics of 6'):
        importance_from(found)(group)
