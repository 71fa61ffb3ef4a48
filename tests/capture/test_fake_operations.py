"""Results that fxprune computes itself on fake tensors, compared with those of torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture import fake_operations
from fxprune.capture.fake_tensors import Faker
from tests.small_graphs import GRAPHS
from tests.support import call, torchvision


class Both(TorchDispatchMode):
    """Runs each operation as torch does it and as fxprune does it, and compares the two results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted = func(*args, **(kwargs or {}))
        made = fake_operations.run(func, args, kwargs or {})
        self.seen[func] += 1
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours, theirs = described(made, given), described(wanted, given)
        if func in fake_operations.IN_PLACE and made is args[0] and made.constant is not None:
            ours, theirs = ours[:-2], theirs[:-2]  # torch gives back another tensor for a buffer whose number it knows
        assert ours == theirs, func
        return made


def described(result: Any, given: list[Tensor]) -> Any:
    """Everything of a result that a forward may ask for, and the arguments that it is, or whose memory it has."""
    if not isinstance(result, Tensor):
        return [type(result), *(described(r, given) for r in result)] if isinstance(result, (list, tuple)) else result
    form = type(result), result.shape, result.stride(), result.storage_offset(), result.dtype, result.device
    constant = getattr(result, "constant", None)
    same = [result is each for each in given]
    shared = [storage(result) == storage(each) for each in given]
    return (*form, result.requires_grad, result.layout, constant is None, same, shared)


def storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata


def both(model: nn.Module, inputs: Any, training: bool = False) -> Counter[Any]:
    """Compare all operations of a forward, twice, as the second one may take what the first one left."""
    mode = Both()
    for _ in range(2):
        faker = Faker()
        fake = faker.module(model).train(training)
        with torch.no_grad(), faker.mode, mode:
            call(fake, faker.tree(inputs))
    return mode.seen


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_small_graphs(graph: Any) -> None:
    try:
        model, inputs = graph.build()
        both(model, inputs)
    except torch._subclasses.fake_tensor.DataDependentOutputException:
        pass  # a forward that decides by numbers runs on real tensors


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images(memory_format: torch.memory_format, training: bool) -> None:
    models = torchvision().models
    seen: Counter[Any] = Counter()
    for make in (models.mobilenet_v3_small, models.shufflenet_v2_x0_5, models.squeezenet1_1):
        x = torch.randn(2, 3, 64, 64).to(memory_format=memory_format)
        seen += both(make().to(memory_format=memory_format), (x,), training)
    assert seen[torch.ops.aten.convolution.default] > 100


def test_most_kinds_are_compared() -> None:
    seen: Counter[Any] = Counter()
    for graph in GRAPHS:
        if graph.name not in ("branch that depends on numbers",):
            seen += both(*graph.build())
    ways = {*fake_operations.BY_KERNEL, *fake_operations.REMEMBERED, *fake_operations.IN_PLACE}
    assert len(ways & set(seen)) > 0.6 * len(ways), sorted(map(str, ways - set(seen)))


KINDS = {
    "rows and columns": lambda a, b: a.add(b[:, :1]),
    "mixed types": lambda a, b: a.to(torch.float16) * b + 1,
    "integers": lambda a, b: a.long() / 2 - b.long().sum(0),
    "transposed": lambda a, b: (a.T @ b).T.exp().mean(0, keepdim=True),
    "a number of no dimensions": lambda a, b: a * b.sum() + torch.tensor(2.0),
    "numbers that are known": lambda a, b: torch.arange(3).add_(1).unsqueeze(0)[:, 1:] + 1,
    "in place": lambda a, b: a.t().contiguous().relu_().add_(b.t()).mul_(2.0).view(-1)[3:],
    "in place with numbers": lambda a, b: torch.empty(4, 5).bernoulli_(0.5).div_(0.5).mul_(a).add_(1).sub_(b, alpha=2),
    "counts": lambda a, b: (
        torch.tensor(3).add_(1).mul_(2) + torch.tensor(2.5).sub_(1) + nn.functional.hardtanh_(a, 0, 6)
    ),
    "integers in place": lambda a, b: a.long().add_(1).mul_(b.long()),
    "pieces": lambda a, b: torch.cat(
        [a.split(2)[0], b, b.unbind(0)[1].split([1, 4])[1].expand(2, 4).repeat(1, 2)[:, :5]]
    ),
    "expanded": lambda a, b: a[None].expand(3, 4, 5).permute(2, 0, 1).squeeze(0).select(0, -1).clone(),
    "softmax and others": lambda a, b: torch.where(a > 0, torch.softmax(a, -1), nn.functional.silu(b).neg().rsqrt()),
    "norms": lambda a, b: nn.functional.group_norm(nn.functional.layer_norm(a, (5,))[..., None], 5),
    "pools": lambda a, b: nn.functional.avg_pool2d(a[None], 2) + nn.functional.adaptive_avg_pool2d(b[None], 2).sum(),
    "tables": lambda a, b: nn.functional.embedding(a.argmax(0), b).cos().sin().sqrt() ** 3,
    "gates": lambda a, b: nn.functional.gelu(a, approximate="tanh") + nn.functional.hardsigmoid(b).sigmoid().tanh(),
}


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.function(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_arguments(name: str) -> None:
    both(Function(KINDS[name]), (torch.randn(4, 5), torch.randn(4, 5)))


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(func: Any, args: Any, kwargs: Any) -> Any:
        return args[0].new_empty(args[0].shape, dtype=torch.float16)

    monkeypatch.setitem(fake_operations._WAYS, torch.ops.aten.exp.default, wrong)
    with pytest.raises(AssertionError):
        both(Function(lambda a, b: a.exp()), (torch.randn(4, 5), torch.randn(4, 5)))


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_operations, "MOST_FORMS", 3)
    for size in range(1, 9):
        both(Function(lambda a, b: a + b), (torch.randn(size), torch.randn(size)))
    assert len(fake_operations._FORMS) <= 3


class TestBatchNorm:
    """Batch normalisation by one operation gives what torch's function gives, and leaves errors to torch."""

    @pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 6)])
    @pytest.mark.parametrize("affine", [True, False])
    def test_the_form_is_that_of_torch(self, shape: tuple[int, ...], affine: bool) -> None:
        faker = Faker()
        statistics = faker.tree((torch.zeros(4), torch.ones(4)))
        weights = faker.tree((torch.ones(4), torch.zeros(4))) if affine else (None, None)
        x = faker.tree(torch.randn(shape))
        with torch.no_grad(), faker.mode:
            made = fake_operations.batch_norm(x, *statistics, *weights)
            assert described(made, [x]) == described(nn.functional.batch_norm(x, *statistics, *weights), [x])

    def test_what_does_not_fit_is_left_to_torch(self) -> None:
        faker = Faker()
        four, five, x = faker.tree((torch.ones(4), torch.ones(5), torch.randn(2, 4, 3)))
        with faker.mode:
            assert fake_operations.batch_norm(x, four, four, four, four) is not None
            assert fake_operations.batch_norm(x, five, four, four, four) is None
            assert fake_operations.batch_norm(x, four, four, four, five) is None
            assert fake_operations.batch_norm(x, four, four, training=True) is None
            assert fake_operations.batch_norm(x, four, four, eps=-1.0) is None
            assert fake_operations.batch_norm(x, None, None) is None
        assert fake_operations.batch_norm(torch.randn(2, 4), torch.ones(4), torch.ones(4)) is None


def test_a_count_that_is_known_is_counted_with_all_arguments() -> None:
    faker = Faker()
    with faker.mode:
        count = torch.tensor(3)
        for func, args, kwargs in (
            (torch.ops.aten.add_.Tensor, (1,), {"alpha": 4}),
            (torch.ops.aten.mul_.Tensor, (5,), {}),
            (torch.ops.aten.sub_.Tensor, (2,), {"alpha": 3}),
        ):
            assert fake_operations.run(func, (count, *args), kwargs) is count
        assert int(count) == (3 + 4) * 5 - 6


def test_what_is_remembered_is_so_for_one_default_type() -> None:
    found, before = [], torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            faker = Faker()
            with faker.mode:
                whole = torch.ones(3, dtype=torch.int64)
                found.append(fake_operations.run(torch.ops.aten.sqrt.default, (whole,), {}).dtype)
    finally:
        torch.set_default_dtype(before)
    assert found == [torch.float32, torch.float64]
