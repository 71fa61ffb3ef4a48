"""Hooks of modules and parameters: bound to the small model, or named where they close over the original."""

from __future__ import annotations

import copy
import functools
import warnings
import weakref

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))

    def counted(self, module, *args):
        self.calls += 1


def net():
    return Net().double().eval()


def inputs():
    return torch.randn(3, 4).double()


def pruned(model, **options):
    return fxprune.transform(model, inputs(), **({"ratio": 0.5, "path": "eager"} | options))


def with_owner(owner, module, args, output):
    owner.calls += 1


class Counting:
    def __init__(self, owner):
        self.owner = owner

    def __call__(self, module, args, output):
        self.owner.calls += 1


def counting_function(model):
    def hook(module, args, output):
        model.calls += 1

    return hook


@pytest.mark.parametrize("options", [{}, {"always_call": True}, {"prepend": True}])
def test_a_hook_of_the_model_itself_runs(options):
    model = net()
    model.register_forward_hook(lambda m, args, out: out + 1, **options)
    model.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    model.register_forward_hook(lambda m, args, kwargs, out: out * 3, with_kwargs=True)
    small, x = pruned(model), inputs()
    assert relative_error(small(x), fxprune.masked(model, fxprune.record(small).removed)(x)) < 1e-12
    assert fxprune.record(small).reasons == ()


@pytest.mark.parametrize("make", [lambda m: m.counted, lambda m: functools.partial(with_owner, m), Counting])
def test_a_hook_bound_to_a_module_is_bound_to_its_small_counterpart(make):
    model = net()
    model.a.register_forward_hook(make(model))
    small = pruned(model)
    before = model.calls, small.calls
    small(inputs())
    assert (model.calls, small.calls) == (before[0], before[1] + 1)
    assert fxprune.record(small).reasons == ()


class Gated(Net):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.rand(8))

    def gated(self, module, args, output):
        return output * self.gate


class Gate:
    def __init__(self, owner):
        self.owner = owner

    def __call__(self, module, args, output):
        return self.owner.gated(module, args, output)


@pytest.mark.parametrize("make", [lambda m: m.gated, lambda m: functools.partial(Gated.gated, m), Gate])
def test_what_a_hook_reads_of_its_module_shrinks_with_what_it_meets(make):
    model = Gated().double().eval()
    model.a.register_forward_hook(make(model))
    small, x = pruned(model), inputs()
    assert small.gate.shape == (4,)
    assert relative_error(small(x), fxprune.masked(model, fxprune.record(small).removed)(x)) < 1e-12
    assert fxprune.record(small).reasons == ()


REGISTER = {
    "forward hook": lambda m, hook: m.register_forward_hook(hook),
    "forward pre-hook": lambda m, hook: m.register_forward_pre_hook(hook),
    "backward hook": lambda m, hook: m.register_full_backward_hook(hook),
    "backward pre-hook": lambda m, hook: m.register_full_backward_pre_hook(hook),
    "state_dict pre-hook": lambda m, hook: m.register_state_dict_pre_hook(hook),
    "state_dict hook": lambda m, hook: m.register_state_dict_post_hook(hook),
    "load_state_dict pre-hook": lambda m, hook: m.register_load_state_dict_pre_hook(hook),
    "load_state_dict hook": lambda m, hook: m.register_load_state_dict_post_hook(hook),
}


@pytest.mark.parametrize("kind", REGISTER)
def test_a_hook_that_closes_over_the_original_is_named(kind):
    model = net()

    def hook(module, *args):
        model.calls += 1

    REGISTER[kind](model.a, hook)
    with_default = net()
    REGISTER[kind](with_default.a, lambda module, *args, owner=with_default.norm: None)
    for given, what in ((model, "the original"), (with_default, '"norm" of the original')):
        [reason] = [r for r in fxprune.record(pruned(given)).reasons if "refers" in r]
        assert reason.startswith(f'the {kind} of "a" (')
        assert "test_references.py" in reason
        assert reason.endswith(f"refers to {what}")


@pytest.mark.parametrize("kind", REGISTER)
def test_masked_warns_of_a_hook_that_uses_what_is_zero_in_the_copy(kind):
    model = net()
    layer = model.a
    REGISTER[kind](model.b, lambda module, *args: layer.bias[0] and None)
    removed = fxprune.record(pruned(model)).removed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxprune.masked(model, removed)
        fxprune.masked(model, {"norm.weight": {0: [1]}})  # which the hook does not use
    assert len(caught) == (kind in ("forward hook", "forward pre-hook"))
    for one in caught:
        text = str(one.message)
        assert f'the {kind} of "b" (<lambda>, {__file__}:' in text
        assert 'refers to "a" of the original, which keeps its numbers. Let that code take it from' in text
        assert one.filename == __file__


@pytest.mark.filterwarnings("error")
def test_masked_does_not_warn_of_a_hook_that_is_bound():
    model = net()
    model.a.register_forward_hook(model.counted)
    model.b.register_forward_pre_hook(lambda module, args: None)
    fxprune.masked(model, fxprune.record(pruned(model)).removed)


REGISTRY = {}


def looked_up(key):
    return REGISTRY[key]


class FromRegistry(Net):
    def __init__(self, what):
        super().__init__()
        self.mid, self.tail = nn.Linear(8, 8), nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
        REGISTRY["mid"], self.what = what(self), what

    def forward(self, x):
        h, mid = self.a(x), REGISTRY["mid"]
        return self.tail(self.b(torch.relu(self.norm(mid(h) if callable(mid) else h @ mid))))


class ByFunction(FromRegistry):
    def forward(self, x):
        h, mid = self.a(x), looked_up("mid")
        return self.tail(self.b(torch.relu(self.norm(mid(h) if callable(mid) else h @ mid))))


class Writing(Net):
    def __init__(self):
        super().__init__()
        REGISTRY["a"] = self.a


@pytest.mark.parametrize("kind", [FromRegistry, ByFunction])
@pytest.mark.parametrize(
    ("what", "name"), [(lambda m: m.mid, "mid"), (lambda m: m.mid.weight, "mid.weight")], ids=["layer", "weight"]
)
def test_a_variable_that_holds_a_part_of_the_original_is_named(kind, what, name):
    model = kind(what).double().eval()
    small, x = pruned(model), inputs()
    record = fxprune.record(small)
    assert relative_error(small(x), fxprune.masked(model, record.removed)(x)) < 1e-12
    [reason] = [reason for reason in record.reasons if "REGISTRY" in reason]
    function = "looked_up" if kind is ByFunction else "forward"
    assert reason.startswith(f'the variable "REGISTRY" outside of the model, which {function}, {__file__}:')
    assert reason.endswith(f'has "{name}" of the original in it, and the small model uses that, not its own copy')


def test_a_variable_that_forward_does_not_read_is_not_named():
    assert fxprune.record(pruned(Writing().double().eval())).reasons == ()


@pytest.mark.parametrize("kind", REGISTER)
def test_hooks_of_every_kind_run_on_the_small_model(kind):
    model, seen = net(), []
    REGISTER[kind](model.a, lambda module, *args: seen.append(module))
    small = pruned(model)
    seen.clear()
    small(inputs().requires_grad_()).sum().backward()
    small.load_state_dict(small.state_dict())
    assert small.a in seen
    assert model.a not in seen


def test_an_attribute_that_closes_over_the_original_is_named():
    model = net()
    model.scaled = lambda x: x * model.a.weight.sum()
    model.method = model.counted
    model.listed = [functools.partial(with_owner, model.norm)]
    small = pruned(model)
    [reason] = fxprune.record(small).reasons
    assert reason.startswith('the attribute "scaled" of the model (<lambda>')
    assert small.method.__self__ is small
    assert small.listed[0].args[0] is small.norm


# -- hooks of parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fx", "eager"])
def test_a_hook_of_a_parameter_is_carried_over(path):
    model = net()
    model.a.weight.register_hook(lambda g: g * 0)
    small = pruned(model, path=path)
    small(inputs()).sum().backward()
    assert not small.get_submodule("a").weight.grad.any()
    assert small.get_submodule("b").weight.grad.any()
    assert fxprune.record(small).reasons == ()


def test_a_gradient_mask_of_the_old_width_is_named():
    model = net()
    model.a.weight.register_hook(functools.partial(torch.mul, torch.ones(8, 4).double()))
    mask = torch.zeros(8, 1).double()
    model.norm.weight.register_hook(lambda g: g * mask[:, 0])
    keep = torch.zeros(2).double()
    model.b.bias.register_hook(lambda g: g * keep)
    with pytest.warns(
        UserWarning, match='hooks are not on the new parameters of "a.weight", "norm.weight": register them again'
    ):
        small = pruned(model)
    first, second = fxprune.record(small).reasons
    assert first.startswith('a gradient hook of "a.weight" (')
    assert first.endswith("is left out: it uses a tensor of shape (8, 4), and the gradient has shape (4, 4) now")
    assert '"norm.weight" (<lambda>' in second
    small(inputs()).sum().backward()
    assert small.a.weight.grad.any()
    assert not small.b.bias.grad.any(), "a parameter that keeps its shape keeps its hook"


MASK = torch.ones(8, 4).double()


def masked_by(mask, gradient):
    return gradient * mask


def by_default(gradient, mask=None):
    return gradient.mul(mask)


def in_place(mask):
    def hook(parameter):
        parameter.grad.mul_(mask)

    return hook


@pytest.mark.parametrize("kind", ["closure", "default", "partial", "where", "rows", "cast", "in place"])
def test_a_gradient_mask_is_cut_where_the_hook_works_element_by_element(kind):
    torch.manual_seed(0)
    model = net()
    shape = (8, 1) if kind == "rows" else (8, 4)
    flags = torch.rand(shape) < 0.5
    mask = flags.double()
    hooks = {
        "closure": lambda g: g * mask,
        "default": lambda g, mask=mask: g * mask / 1.0,
        "partial": functools.partial(masked_by, mask),
        "where": lambda g, keep=flags: torch.where(keep, g, 0.0),
        "rows": lambda g: g.mul(mask),
        "cast": lambda g, keep=flags: g * keep.to(g.dtype),
    }
    if kind == "in place":
        model.a.weight.register_post_accumulate_grad_hook(in_place(mask))
    else:
        model.a.weight.register_hook(hooks[kind])
    small = pruned(model)
    [reason] = fxprune.record(small).reasons
    assert "has the kept part of its mask" in reason
    gone = fxprune.record(small).removed["a.weight"][0]
    kept = [row for row in range(8) if row not in gone]
    for x in (inputs(), inputs()):
        small(x).sum().backward()
    assert small.a.weight.grad.any()
    zero = small.a.weight.grad == 0
    expected = mask.expand(8, 4)[kept] == 0
    assert torch.equal(zero | ~expected, torch.ones_like(zero))
    assert not zero.all()
    assert mask.shape == shape


@pytest.mark.parametrize("kind", ["global", "counts", "mean", "two", "index", "call", "adds"])
def test_a_hook_that_may_do_more_than_mask_is_left_out(kind):
    model, seen = net(), []
    mask, other = torch.ones(8, 4).double(), torch.ones(8, 4).double()
    model.a.weight.register_hook(
        {
            "global": lambda g: g * MASK,
            "counts": lambda g: seen.append(1) or g * mask,
            "mean": lambda g: g * mask.mean(0) * mask.shape[0],
            "two": lambda g: g * mask * other,
            "index": lambda g: g * mask[:8],
            "call": lambda g: masked_by(mask, g),
            "adds": lambda g: g + mask,
        }[kind]
    )
    with pytest.warns(UserWarning, match='hooks are not on the new parameters of "a.weight": register'):
        small = pruned(model)
    [reason] = fxprune.record(small).reasons
    assert "is left out: it uses a tensor of shape (8, 4)" in reason
    assert not seen


def test_a_hook_on_the_sum_of_gradients_is_carried_over_unless_it_refers_to_the_original():
    model, seen = net(), []
    model.a.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    optimizers = {model.a.weight: torch.optim.SGD([model.a.weight])}
    model.a.weight.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with pytest.warns(UserWarning, match='hooks are not on the new parameters of "a.weight": register'):
        small = pruned(model)
    small(inputs()).sum().backward()
    assert [p is small.a.bias for p in seen] == [True]
    [reason] = fxprune.record(small).reasons
    assert reason.startswith('a hook on the sum of gradients of "a.weight"')
    assert reason.endswith('it refers to "a.weight" of the original')


def test_a_hook_of_a_parameter_that_is_bound_to_a_module_is_bound_to_its_counterpart():
    class Layer(nn.Linear):
        def halved(self, gradient):
            self.last = gradient
            return gradient / 2

    model = net()
    model.a = Layer(4, 8).double()
    model.a.weight.register_hook(model.a.halved)
    small = pruned(model)
    small(inputs()).sum().backward()
    assert small.a.last.shape == (4, 4)
    assert not hasattr(model.a, "last")


def test_attributes_of_parameters_are_kept():
    model = net()
    model.a.bias.no_weight_decay = True
    model.a.weight.requires_grad_(False)
    small = pruned(model)
    assert small.a.bias.no_weight_decay
    assert not small.a.weight.requires_grad
    assert copy.deepcopy(small)(inputs()).shape == (3, 2)


class Shared:
    def __init__(self, layer):
        self.layer = layer

    def __deepcopy__(self, memo):
        return self


def test_an_attribute_of_a_parameter_refers_to_the_small_model_or_is_named():
    model = net()
    model.a.weight.owner = weakref.ref(model.a)
    model.a.bias.owner = model.a
    model.b.weight.copied = {"owner": model.a}
    model.b.weight.shared = Shared(model.a)
    small = pruned(model)
    assert small.a.weight.owner() is small.a
    assert small.a.bias.owner is small.a
    assert small.b.weight.copied["owner"] is small.a
    assert model.b.weight.copied["owner"] is model.b.weight.shared.layer is model.a
    assert [reason for reason in fxprune.record(small).reasons if "refers to" in reason] == [
        'the attribute "shared" of the parameter "b.weight" refers to "a" of the original'
    ]


def test_what_slots_and_items_refer_to_is_named():
    class Slots(Net):
        __slots__ = ("shared",)

    class Items(Net, dict):
        __hash__, __eq__ = object.__hash__, object.__eq__

        def __init__(self):
            Net.__init__(self)

    slots, items = Slots().double(), Items().double()
    slots.shared, items["shared"] = Shared(slots.a), Shared(items.a)
    assert any('attribute "shared"' in reason for reason in fxprune.record(pruned(slots)).reasons)
    assert any("attribute \"['shared']\"" in reason for reason in fxprune.record(pruned(items)).reasons)


class Drifts(Net):
    """A copy of the first weight, which another method compares with it."""

    def __init__(self):
        super().__init__()
        self.first = self.a.weight.detach().clone()
        self.register_buffer("copied", self.b.weight.detach().clone())

    def drift(self):
        return (self.a.weight - self.first).abs().sum() + (self.b.weight - self.copied).abs().sum()


def test_tensors_that_forward_does_not_read_and_that_keep_the_old_shape_are_named():
    model = Drifts().double().eval()
    stays = [reason.partition(":")[0] for reason in fxprune.record(pruned(model)).reasons if " stays [" in reason]
    assert sorted(stays) == ['"copied" stays [2, 8]', '"first" stays [8, 4]']
    small = pruned(model, methods={"drift": ()})
    assert not [reason for reason in fxprune.record(small).reasons if " stays [" in reason]
    assert small.drift() == 0


@pytest.mark.parametrize(
    "kind", [list, tuple, lambda tensors: {"nested": tensors}, lambda tensors: dict(enumerate(tensors))]
)
def test_tensors_in_containers_that_keep_the_old_shape_are_named(kind):
    class Averages(Net):
        def __init__(self):
            super().__init__()
            self.shadow = kind([parameter.detach().clone() for parameter in self.parameters()])
            self.parts = [self.a.weight, torch.ones(5), "text"]

    small = pruned(Averages().double().eval())
    (told,) = (reason for reason in fxprune.record(small).reasons if "shadow" in reason)
    assert " stays [8, 4] (and 4 more tensors of shadow): forward does not read it" in told
    assert '"a.weight" had this shape; `methods=` shows what reads it' in told
    assert not [reason for reason in fxprune.record(small).reasons if "parts" in reason]


def test_a_list_of_any_length_is_looked_at_and_one_that_forward_reads_is_not_named():
    class Long(Net):
        def __init__(self):
            super().__init__()
            self.shadow = [*range(300), self.a.weight.detach().clone()]
            self.read = [self.a.weight.detach().clone().double()]

        def forward(self, x):
            return super().forward(x) + nn.functional.linear(x, self.read[0]).sum(-1, keepdim=True)

    told = [reason for reason in fxprune.record(pruned(Long().double().eval())).reasons if "a.weight" in reason]
    assert [reason.partition(":")[0] for reason in told] == ['"shadow[300]" stays [8, 4]']
