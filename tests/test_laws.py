"""The promises of the API, each on a model of its own that is as small as the promise allows."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import randomize
from torch import Tensor, fx, nn

import fxprune

ROUNDING = 1e-9


def ready(net: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, evaluation mode, random numbers of both signs everywhere."""
    return randomize(net.double().eval(), seed)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain() -> nn.Module:
    """Two convolutions with a batch norm between them, then one that is the output."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.SiLU()]
    return ready(nn.Sequential(*layers, nn.Conv2d(6, 2, 1)))


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).detach().abs().max() / reference.detach().abs().max())


def equals_masked(net: nn.Module, small: nn.Module, *inputs: Any) -> bool:
    """True if the small model computes what the original does with the removed slots set to zero."""
    return error(small(*inputs), fxprune.masked(net, fxprune.record(small).removed)(*inputs)) < ROUNDING


def keep(size: int, *removed: int) -> Tensor:
    """A mask that removes these channels."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(removed)] = False
    return mask


# -- shared things stay shared --------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(self.stem(x))))))


def test_tied_parameters_stay_one_object() -> None:
    net, x = ready(Tied()), random(4, 5)
    small = fxprune.transform(net, x, ratio=0.5)
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (3, 3)
    removed = fxprune.record(small).removed
    assert removed["a.weight"] == removed["b.weight"]
    assert set(removed["a.weight"]) == {0, 1}
    assert equals_masked(net, small, x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.twin = self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.twin(torch.tanh(self.conv(torch.tanh(self.conv(self.stem(x))))))))


def test_a_module_called_twice_stays_one_module() -> None:
    net, x = ready(Twice()), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.5, prefer="graph")
    called = [node for node in small.graph.nodes if node.op == "call_module" and "stem" not in str(node.target)]
    assert len(called) == 4
    assert len({id(small.get_submodule(str(node.target))) for node in called}) == 2
    assert small.conv.weight.shape == (3, 3, 3, 3)
    assert equals_masked(net, small, x)


# -- what a tensor carries along ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_carries_over(dtype: torch.dtype) -> None:
    net, x = chain().to(dtype), random(2, 3, 5, 4).to(dtype)
    small = fxprune.transform(net, x, ratio=0.5)
    floats = [t for t in [*small.parameters(), *small.buffers()] if t.is_floating_point()]
    assert {t.dtype for t in floats} == {dtype}
    assert fxprune.record(small).error < ROUNDING, "the proof is in float64 whatever the weights are"
    assert small(x).dtype == dtype
    assert small.get_parameter("0.weight").shape == (4, 3, 3, 3)


def test_mixed_dtypes_carry_over_one_by_one() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)).float())

    net = ready(Mixed())
    net.b.float()
    small = fxprune.transform(net, random(2, 4), ratio=0.5)
    assert (small.a.weight.dtype, small.b.weight.dtype) == (torch.float64, torch.float32)


def test_requires_grad_carries_over() -> None:
    net = chain()
    net.get_parameter("0.weight").requires_grad_(False)
    net.get_parameter("1.bias").requires_grad_(False)
    small = fxprune.transform(net, random(2, 3, 5, 4), ratio=0.5)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == flags
    assert all(p.is_leaf and p.grad is None for p in small.parameters())


def test_a_buffer_that_requires_a_gradient_goes_on_to() -> None:
    net = ready(Buffers())
    net.scale.requires_grad_()
    for path in ("fx", "eager"):
        small = fxprune.transform(net, random(2, 3, 4, 5), ratio=0.5, path=path)
        assert {name for name, b in small.named_buffers() if b.requires_grad} == {"scale"}
        assert small.scale.is_leaf


def test_gradients_flow_in_the_small_model() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.5).train()
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for name, p in small.named_parameters() if "weight" in name)
    assert all(p.grad is None for p in net.parameters())


def test_modes_carry_over_module_by_module() -> None:
    net = chain().train()
    net.get_submodule("1").eval()
    small = fxprune.transform(net, random(2, 3, 5, 4), ratio=0.5)
    assert {n: m.training for n, m in small.named_modules() if n} == {
        n: m.training for n, m in net.named_modules() if n
    }
    assert small.training
    x = random(2, 3, 5, 4, seed=2)
    small.eval()
    assert equals_masked(net.eval(), small, x)


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
def test_modes_of_containers_carry_over(path: str) -> None:
    layers = [nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 6), nn.ReLU())]
    net = ready(nn.Sequential(*layers, nn.Linear(6, 2)))
    net.get_submodule("1").train()
    small = fxprune.transform(net, random(2, 4), ratio=0.5, path=path)
    assert {name for name, module in small.named_modules() if module.training} <= {"1", "1.0", "1.1"}
    assert {"1", "1.0"} <= {name for name, module in small.named_modules() if module.training}


def test_forward_hooks_on_layers_carry_over() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    seen: list[tuple[int, ...]] = []
    net.get_submodule("0").register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    small = fxprune.transform(net, x, ratio=0.5)
    seen.clear()
    small(x)
    assert seen == [(2, 4, 5, 4)]


def test_a_hook_that_changes_the_output_is_part_of_the_model() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    net.get_submodule("3").register_forward_hook(lambda module, args, output: 2 * output + 1)
    small = fxprune.transform(net, x, ratio=0.5)
    assert equals_masked(net, small, x)


def test_channels_last_carries_over() -> None:
    net, x = chain().to(memory_format=torch.channels_last), random(2, 3, 5, 4)
    small = fxprune.transform(net, x.to(memory_format=torch.channels_last), ratio=0.5)
    for name, parameter in small.named_parameters():
        if parameter.ndim == 4 and "5." not in name:  # 1 x 1 kernels are both
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
            assert not parameter.is_contiguous(), name
    assert equals_masked(net, small, x)


def test_python_attributes_of_parameters_carry_over() -> None:
    net = chain()
    net.get_parameter("0.weight").learning_rate = 0.1
    small = fxprune.transform(net, random(2, 3, 5, 4), ratio=0.5)
    assert small.get_parameter("0.weight").learning_rate == 0.1


def test_python_attributes_of_modules_carry_over() -> None:
    net = chain()
    net.get_submodule("0").note = ["kept"]
    small = fxprune.transform(net, random(2, 3, 5, 4), ratio=0.5)
    assert small.get_submodule("0").note == ["kept"]
    assert small.get_submodule("0").note is not net.get_submodule("0").note


class Buffers(nn.Module):
    """Index lists, constants of both kinds of persistence, a buffer per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.register_buffer("order", torch.tensor([4, 0, 5, 2, 1, 3]))
        self.register_buffer("scale", torch.zeros(6, 1, 1))
        self.register_buffer("shift", torch.zeros(1, 6, 1, 1), persistent=False)
        self.register_buffer("steps", torch.tensor(17))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(x) * self.scale)[:, self.order] + self.shift)


def test_buffers_shrink_and_lists_of_positions_are_renumbered() -> None:
    net, x = ready(Buffers()), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, masks={"conv": keep(6, 0, 4)})
    assert small.order.tolist() == [3, 1, 0, 2], "5, 2, 1, 3 among 1, 2, 3, 5"
    assert small.order.dtype == torch.int64
    assert small.scale.shape == (4, 1, 1)
    assert small.shift.shape == (1, 4, 1, 1)
    assert "shift" not in small.state_dict()
    assert fxprune.record(small).removed["shift"] == {1: [0, 1]}
    assert equals_masked(net, small, x)


class OneListForTwo(nn.Module):
    """One list of positions picks from two dimensions of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.last = nn.Linear(4, 6), nn.Linear(4, 8), nn.Linear(6, 2)
        self.register_buffer("order", torch.tensor([4, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        picked = torch.tanh(self.short(x))[:, self.order], torch.tanh(self.long(x))[:, self.order]
        return self.last(torch.cat(picked, 1))


def test_a_list_of_positions_in_two_dimensions_of_different_sizes_holds_both() -> None:
    net, x = ready(OneListForTwo()), random(2, 4)
    analysis = fxprune.analyze(net, x)
    held = {name for locked in analysis.locked if "different sizes" in str(locked.event) for name, _ in locked.slots}
    assert {"short.weight", "long.weight"} <= held
    assert analysis.groups == ()


class UsedBackwards(nn.Module):
    """Registers everything in another order than forward uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.block = nn.Linear(8, 2), nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.gain, self.bias = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("scale", torch.zeros(8))
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x) * self.shift + self.scale * self.bias * self.gain)


def test_the_state_dict_has_the_same_keys_in_the_same_order() -> None:
    cases = ((chain, (2, 3, 5, 4)), (lambda: ready(Tied()), (2, 5)), (lambda: ready(UsedBackwards()), (2, 4)))
    for make, shape in cases:
        for path in ("fx", "eager", "export"):
            net = make()
            small = fxprune.transform(net, random(*shape), ratio=0.5, path=path)
            assert list(small.state_dict()) == list(net.state_dict())
            assert [name for name, _ in small.named_parameters()] == [name for name, _ in net.named_parameters()]


def test_the_small_model_shares_no_memory_with_the_original() -> None:
    net = chain()
    small = fxprune.transform(net, random(2, 3, 5, 4), ratio=0.5)
    ours = {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]}
    theirs = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    assert not ours & theirs


def test_the_small_model_holds_no_larger_storage() -> None:
    """A view into the original's weights would be saved whole."""
    small = fxprune.transform(chain(), random(2, 3, 5, 4), ratio=0.5)
    for name, tensor in small.state_dict().items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


# -- models of every kind -------------------------------------------------------------------------------------


def test_a_traced_model_works_as_well_as_the_module() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    from_module = fxprune.transform(net, x, ratio=0.5)
    traced = fx.symbolic_trace(net)
    code = traced.code
    from_graph = fxprune.transform(traced, x, ratio=0.5)
    assert torch.equal(from_module(x), from_graph(x))
    assert list(from_graph.state_dict()) == list(from_module.state_dict())
    assert traced.code == code
    assert fxprune.record(from_graph).removed == fxprune.record(from_module).removed


def test_a_pruned_model_can_be_pruned_again() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    once = fxprune.transform(net, x, ratio=0.25)
    twice = fxprune.transform(once, x, ratio=0.5)
    assert fxprune.verify(net, once, x) < ROUNDING
    assert fxprune.verify(once, twice, x) < ROUNDING
    assert [twice.get_submodule(n).out_channels for n in "03"] == [3, 3]
    assert fxprune.record(twice).before == fxprune.record(once).after
    assert fxprune.record(once).after["0.weight"] == (6, 3, 3, 3), "the first record is what it was"


def test_copies_keep_the_record() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.5)
    clone = copy.deepcopy(small)
    assert fxprune.record(clone) == fxprune.record(small)
    assert fxprune.verify(net, clone, x) < ROUNDING
    assert torch.equal(clone(x), small(x))


def test_pickles_compute_the_same() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.5)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))


def test_other_models_have_no_record() -> None:
    for model in (chain(), fx.symbolic_trace(chain())):
        with pytest.raises(fxprune.FxpruneError, match="has no record"):
            fxprune.record(model)


def test_a_model_without_weights_can_be_pruned() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.empty(1, 3, 8, 8, device="meta")
    assert [g.size for g in fxprune.analyze(net, x).groups] == [8]
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=0)
    assert fxprune.record(small).error is None
    assert {p.device.type for p in small.parameters()} == {"meta"}
    assert small.get_parameter("0.weight").shape == (4, 3, 3, 3)
    real = small.to_empty(device="cpu")
    assert real(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)


class Reshaping(nn.Module):
    """Sizes computed from the input, as batch and space are in well-written models."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.out(F.relu(self.mix(x)))


def test_batch_and_space_stay_dynamic() -> None:
    net = ready(Reshaping())
    small = fxprune.transform(net, random(2, 3, 6, 5), ratio=0.5, prefer="graph")
    for shape in ((1, 3, 6, 5), (5, 3, 6, 5), (2, 3, 9, 4)):
        assert equals_masked(net, small, random(*shape))


def test_a_batch_stays_dynamic_before_a_linear_layer() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6 * 2 * 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            return self.fc(x.view(x.size(0), -1))

    net = ready(Flat())
    small = fxprune.transform(net, random(2, 3, 4, 5), ratio=0.5)
    assert small.fc.in_features == 3 * 2 * 3
    assert equals_masked(net, small, random(7, 3, 4, 5))


# -- inputs and outputs ---------------------------------------------------------------------------------------


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
        return self.out(torch.tanh(self.a(x) * scale + self.b(y)))


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param((random(2, 3), random(2, 4, seed=2)), id="tuple"),
        pytest.param([random(2, 3), random(2, 4, seed=2)], id="list"),
        pytest.param({"x": random(2, 3), "y": random(2, 4, seed=2)}, id="keywords"),
        pytest.param({"y": random(2, 4, seed=2), "x": random(2, 3)}, id="keywords in another order"),
        pytest.param((random(2, 3), random(2, 4, seed=2), 2.0), id="with a number"),
    ],
)
def test_inputs_by_position_and_by_name(inputs: Any) -> None:
    net = ready(Inputs())
    small = fxprune.transform(net, inputs, ratio=0.5)
    assert small.out.in_features == 3
    assert fxprune.verify(net, small, inputs) < ROUNDING
    x, y = random(2, 3), random(2, 4, seed=2)
    assert equals_masked(net, small, x, y)
    assert torch.equal(small(y=y, x=x), small(x, y))


class Nested(nn.Module):
    """Tensors inside a tuple and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, batch: Any) -> Tensor:
        return self.out(torch.tanh(self.a(batch["x"]) + self.b(batch["more"][0])))


def test_nested_inputs() -> None:
    net, batch = ready(Nested()), {"x": random(2, 3), "more": (random(2, 4),)}
    small = fxprune.transform(net, (batch,), ratio=0.5)
    assert small.out.in_features == 3
    assert equals_masked(net, small, batch)


class Point(NamedTuple):
    near: Tensor
    far: Tensor


class Outputs(nn.Module):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.a(torch.tanh(self.stem(x))))
        return self.pack(hidden, self.b(hidden))


PACKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"far": b, "near": a},
    "namedtuple": Point,
    "nested": lambda a, b: {"all": (a, [b])},
    "with none": lambda a, b: (a, None, b),
}


@pytest.mark.parametrize("pack", PACKS)
def test_several_outputs(pack: str) -> None:
    net, x = ready(Outputs(PACKS[pack])), random(5, 3)
    small = fxprune.transform(net, x, ratio=0.5)
    ours, theirs = small(x), fxprune.masked(net, fxprune.record(small).removed)(x)
    assert type(ours) is type(theirs)
    flat = [torch.utils._pytree.tree_leaves(value) for value in (ours, theirs)]
    assert all(error(a, b) < ROUNDING for a, b in zip(*flat, strict=True) if a is not None)
    assert small.stem.out_features == 3, "inner channels go"
    assert small.a.out_features == 4, "an output keeps its size"


# -- masks ----------------------------------------------------------------------------------------------------


def test_masks_remove_exactly_these_channels_and_what_is_coupled() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, masks={"0": keep(8, 1, 6)})
    norm = {f"1.{name}": {0: [1, 6]} for name in ("weight", "bias", "running_mean", "running_var")}
    assert fxprune.record(small).removed == {
        "0.weight": {0: [1, 6]},
        "0.bias": {0: [1, 6]},
        "3.weight": {1: [1, 6]},
        **norm,
    }
    assert fxprune.record(small).reasons == ()
    assert equals_masked(net, small, x)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(x) + self.b(x)))


def test_masks_of_coupled_layers_add_up() -> None:
    net, x = ready(Sum()), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, masks={"a": keep(6, 0), "b": keep(6, 4)})
    made = fxprune.record(small)
    assert made.removed["a.weight"] == made.removed["b.weight"] == {0: [0, 4]}
    assert len(made.reasons) == 2
    assert '"a": channels 4 go although kept by the mask' in made.reasons[0]
    assert '"b": channels 0 go although kept by the mask' in made.reasons[1]
    assert equals_masked(net, small, x)


def test_masks_of_a_grouped_convolution_take_whole_rows_and_columns() -> None:
    net, x = (
        ready(nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 2, 1))),
        random(2, 3, 4, 5),
    )
    block = fxprune.transform(net, x, masks={"1": keep(12, 4, 5, 6, 7)})
    assert block.get_submodule("1").groups == 2
    assert fxprune.record(block).removed["0.weight"] == {0: [4, 5, 6, 7]}
    assert fxprune.record(block).reasons == ()
    width = fxprune.transform(net, x, masks={"1": keep(12, 1, 5, 9)})
    assert width.get_submodule("1").groups == 3
    assert width.get_submodule("1").weight.shape == (9, 4, 1, 1)
    with pytest.warns(fxprune.NothingRemovedWarning, match=r'"1": 2 masked channels stay \(0, 7\): .* only whole rows'):
        neither = fxprune.transform(net, x, masks={"1": keep(12, 0, 7)})
    assert torch.equal(neither(x), net(x))
    for small in (block, width):
        assert equals_masked(net, small, x)


def test_a_mask_of_the_output_layer_stays_with_the_reason() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    with pytest.warns(
        fxprune.NothingRemovedWarning, match='"5": 1 masked channel stays .0.: output .* output of the model'
    ):
        small = fxprune.transform(net, x, masks={"5": keep(2, 0)})
    assert fxprune.record(small).removed == {}
    both = fxprune.transform(net, x, masks={"5": keep(2, 0), "3": keep(6, 0)})
    assert fxprune.record(both).removed["3.weight"] == {0: [0]}
    assert "output of the model" in fxprune.record(both).reasons[0]


def test_masks_of_parameters_and_of_other_layers() -> None:
    """Raw parameters by their names; transposed convolutions and embeddings by their output dimension."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up = nn.Embedding(10, 6), nn.ConvTranspose1d(6, 4, 3)
            self.matrix, self.out = nn.Parameter(torch.zeros(4, 5)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.up(self.table(x).transpose(1, 2)))
            return self.out(torch.tanh(x.transpose(1, 2) @ self.matrix))

    net, x = ready(Odd()), torch.tensor([[1, 2, 3, 9]])
    small = fxprune.transform(net, x, masks={"table": keep(6, 2), "up": keep(4, 0)})
    removed = fxprune.record(small).removed
    assert removed["table.weight"] == {1: [2]}
    assert removed["up.weight"] == {0: [2], 1: [0]}
    assert removed["matrix"] == {0: [0]}
    assert equals_masked(net, small, x)
    small = fxprune.transform(net, x, masks={"matrix": keep(4, 3)})
    assert fxprune.record(small).removed["up.bias"] == {0: [3]}


# -- ignore, round_to, importance, seed -----------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))
        self.decoder, self.head = nn.Sequential(nn.Conv2d(8, 10, 1), nn.ReLU()), nn.Linear(10, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder(self.encoder(x) * self.scale)
        return self.out(torch.tanh(self.head(x.mean((2, 3)))))


ALL = {"encoder.0.weight": 3, "encoder.2.weight": 4, "decoder.0.weight": 5, "head.weight": 2}


@pytest.mark.parametrize(
    ("ignore", "whole"),
    [
        pytest.param("encoder.0", {"encoder.0.weight": 6}, id="name"),
        pytest.param("encoder", {"encoder.0.weight": 6, "encoder.2.weight": 8}, id="name of a container"),
        pytest.param("*coder.0", {"encoder.0.weight": 6, "decoder.0.weight": 10}, id="glob"),
        pytest.param("scale", {"encoder.2.weight": 8}, id="raw parameter"),
        pytest.param(
            "decoder.0.weight", {"decoder.0.weight": 10, "encoder.2.weight": 8}, id="parameter, every dimension"
        ),
        pytest.param("decoder.0.bias", {"decoder.0.weight": 10}, id="bias"),
        pytest.param(nn.Linear, {"head.weight": 4}, id="type"),
        pytest.param([nn.Linear, "encoder.0"], {"head.weight": 4, "encoder.0.weight": 6}, id="list"),
        pytest.param(("head", "decoder"), {"head.weight": 4, "decoder.0.weight": 10}, id="tuple"),
        pytest.param((), {}, id="nothing"),
    ],
)
def test_ignored_layers_keep_their_outputs(ignore: Any, whole: dict[str, int]) -> None:
    net, x = ready(Named()), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, ignore=ignore)
    assert {name: small.get_parameter(name).shape[0] for name in ALL} == {**ALL, **whole}
    assert equals_masked(net, small, x)


def test_a_module_can_be_ignored_itself() -> None:
    net, x = ready(Named()), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, ignore=net.decoder)
    assert small.decoder.get_submodule("0").out_channels == 10
    assert small.decoder.get_submodule("0").in_channels == 4, "its inputs may still shrink"


def test_ignored_layers_stay_under_masks_too() -> None:
    net, x = ready(Named()), random(2, 3, 4, 5)
    with pytest.warns(fxprune.NothingRemovedWarning, match="their group is ignored"):
        fxprune.transform(net, x, masks={"head": keep(4, 1)}, ignore="head")


def test_a_ratio_for_each_group() -> None:
    net, x = ready(Named()), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, ratio={"encoder.*": 0.5, "head": 0.25})
    assert {name: small.get_parameter(name).shape[0] for name in ALL} == {
        "encoder.0.weight": 3,
        "encoder.2.weight": 4,
        "decoder.0.weight": 10,
        "head.weight": 3,
    }


@pytest.mark.parametrize(("round_to", "kept"), [(1, 21), (2, 22), (4, 24), (8, 24), (16, 32), (64, 41)])
def test_kept_channels_are_a_multiple(round_to: int, kept: int) -> None:
    net = ready(nn.Sequential(nn.Linear(3, 41), nn.ReLU(), nn.Linear(41, 2)))
    with torch.no_grad():
        if kept == 41:
            with pytest.warns(fxprune.NothingRemovedWarning, match="rounding leaves every group whole"):
                small = fxprune.transform(net, random(2, 3), ratio=0.5, round_to=round_to)
        else:
            small = fxprune.transform(net, random(2, 3), ratio=0.5, round_to=round_to)
    assert small.get_submodule("0").out_features == kept


def test_importance_by_a_function_of_the_group() -> None:
    """The sum of absolute batch norm weights: the two lowest go, whatever the convolutions say."""
    net, x = chain(), random(2, 3, 5, 4)
    gains = torch.tensor([5.0, -4.0, 0.1, 3.0, 9.0, -0.2, 7.0, 8.0])
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(gains)
    seen: list[str] = []

    def gain(group: fxprune.Group) -> Tensor:
        seen.append(group.name)
        scores = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.parameter == "1.weight":
                scores += member.per_channel(member.tensor.detach().abs(), group.size)
        return scores

    small = fxprune.transform(net, x, ratio={"0": 0.25}, importance=gain)
    assert fxprune.record(small).removed["1.weight"] == {0: [2, 5]}
    assert seen == ["0"], "only groups that lose something are scored"


def test_per_channel_sums_over_all_slots_of_a_channel() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 2 * 3, 2)))
    group = fxprune.analyze(net, random(2, 3, 4, 5)).groups[0]
    member = next(m for m in group.members if m.parameter == "2.weight")
    assert member.dim == 1
    sums = member.per_channel(member.tensor.detach().abs().sum(0), group.size)
    assert torch.allclose(sums, member.tensor.detach().abs().sum(0).view(4, 6).sum(1))


def test_the_seed_decides_what_random_removes() -> None:
    net, x = chain(), random(2, 3, 5, 4)

    def chosen(seed: int | None) -> str:
        return str(fxprune.record(fxprune.transform(net, x, ratio=0.5, importance="random", seed=seed)).removed)

    assert chosen(3) == chosen(3)
    assert len({chosen(seed) for seed in range(4)}) > 1
    state = torch.random.get_rng_state()
    chosen(None)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's own generator is left alone"


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_channels_of_the_smallest_importance_are_removed(importance: str) -> None:
    net, x = chain(), random(2, 3, 5, 4)
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            net.get_parameter(name)[[2, 7]] *= 1e-3
        net.get_parameter("3.weight")[:, [2, 7]] *= 1e-3
    small = fxprune.transform(net, x, ratio={"0": 0.25}, importance=importance)
    assert fxprune.record(small).removed["0.weight"] == {0: [2, 7]}


def test_one_channel_of_a_group_stays() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.999)
    assert [small.get_submodule(n).out_channels for n in "03"] == [1, 1]
    assert equals_masked(net, small, x)


# -- exactness ------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.out = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(self.norm(self.embed(x)))))


def test_changed_statistics_are_recorded_and_can_be_left_out() -> None:
    net, x = ready(Normed()), random(4, 3)
    small = fxprune.transform(net, x, ratio=0.5)
    assert not fxprune.record(small).exact
    assert any("layer_norm in norm" in reason for reason in fxprune.record(small).reasons)
    assert "not exact" in fxprune.record(small).report()
    assert fxprune.verify(net, small, x) < ROUNDING
    by_hand = nn.LayerNorm(4).double()
    with torch.no_grad():
        kept = [i for i in range(8) if i not in fxprune.record(small).removed["norm.weight"][0]]
        by_hand.weight.copy_(net.norm.weight[kept])
        by_hand.bias.copy_(net.norm.bias[kept])
        features = by_hand(net.embed(x)[:, kept])
        left = [i for i in range(6) if i not in fxprune.record(small).removed["up.weight"][0]]
        up = F.linear(features, net.up.weight[left][:, kept], net.up.bias[left])
        assert error(small(x), F.linear(torch.tanh(up), net.out.weight[:, left], net.out.bias)) < ROUNDING
    exact = fxprune.transform(net, x, ratio=0.5, exact=True)
    assert fxprune.record(exact).exact
    assert exact.embed.out_features == 8
    assert exact.up.out_features == 3
    assert equals_masked(net, exact, x)


def test_a_wrong_small_model_is_found_out() -> None:
    """`verify` sees a single weight that is off."""
    net, x = chain(), random(2, 3, 5, 4)
    small = fxprune.transform(net, x, ratio=0.5)
    with torch.no_grad():
        small.get_parameter("3.weight")[0, 0, 0, 0] += 1e-3
    assert fxprune.verify(net, small, x) > 1e-6


def test_a_plan_can_be_written_down_and_used_again() -> None:
    net, x = chain(), random(2, 3, 5, 4)
    plan = fxprune.analyze(net, x).plan(ratio=0.5)
    written = json.loads(json.dumps(plan.removed))
    read = fxprune.Plan({name: {int(dim): indices for dim, indices in dims.items()} for name, dims in written.items()})
    small, again = (fxprune.transform(net, x, plan=p) for p in (plan, read))
    assert torch.equal(small(x), again(x))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        fxprune.transform(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3), ratio=0.5)
        assert gc.isenabled() is enabled
        with pytest.raises(fxprune.InputError):
            fxprune.analyze(nn.Linear(3, 4), None)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


# -- what random networks found -------------------------------------------------------------------------------


class Positive(nn.Module):
    """Neither factor of the sum vanishes with the channel: sigmoid(0) = 1/2 meets softplus(0) = log 2."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.out, self.conv_groups = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 2, 1), groups
        self.raw = nn.Parameter(torch.zeros(6, 8 // groups, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.conv2d(torch.sigmoid(self.stem(x)), F.softplus(self.raw), groups=self.conv_groups))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_two_factors_that_do_not_vanish_is_inexact(groups: int) -> None:
    net, x = ready(Positive(groups)), random(2, 3, 4, 5)
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=1)
    assert not fxprune.record(small).exact
    assert fxprune.verify(net, small, x) < ROUNDING
    exact = fxprune.transform(net, x, ratio=0.5, importance="random", seed=1, exact=True)
    assert equals_masked(net, exact, x)


def test_hooks_run_in_the_proof_whatever_the_size_of_the_layer() -> None:
    net = ready(nn.Sequential(nn.Linear(1100, 2048), nn.ReLU(), nn.Linear(2048, 3)))
    net.get_submodule("0").register_forward_hook(lambda module, args, output: 2 * output + 1)
    small = fxprune.transform(net, random(2, 1100), ratio=0.5)
    assert fxprune.record(small).error < ROUNDING


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_old_style_reparametrised_layers_never_raise_torch_errors(kind: Any) -> None:
    """Their weight is computed again before every call and cannot be copied: fxprune prunes them or refuses them."""
    net, x = (
        nn.Sequential(nn.Linear(3, 6), kind(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2)).double().eval(),
        random(2, 3),
    )
    try:
        small = fxprune.transform(net, x, ratio=0.5)
    except fxprune.FxpruneError:
        return
    assert fxprune.verify(net, small, x) < ROUNDING


def test_a_glob_that_names_layers_does_not_name_their_parameters_one_by_one():
    net = nn.Sequential(OrderedDict(stem=nn.Linear(4, 6), act=nn.ReLU(), head=nn.Linear(6, 8), last=nn.Linear(8, 2)))
    x = torch.randn(2, 4)
    small = fxprune.transform(net.eval(), x, ratio=0.5, ignore="head*")
    assert (small.get_submodule("stem").out_features, small.get_submodule("head").out_features) == (3, 8)
    with pytest.warns(fxprune.NothingRemovedWarning, match="all 2 groups are ignored"):
        fxprune.transform(net, x, ratio=0.5, ignore="head.*")  # every dimension of its parameters
