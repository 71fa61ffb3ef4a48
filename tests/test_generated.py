"""Laws that hold for every network, on random small ones.

An ordinary run draws the same examples every time. With `-m slow` every law gets `FXPRUNE_EXAMPLES` new ones
(1000 if the variable is not set).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import Program, build, images, programs
from networks_layers import Choices, Layer, features
from networks_tokens import Tokens, build_tokens, leaves, token_programs, tokens
from torch import Tensor, fx, nn

import fxprune
from fxprune.paths import PATHS
from fxprune.planning.channels import removal_of
from fxprune.planning.from_channels import plan_from
from fxprune.planning.plan import Removed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

ROUNDING = 1e-9
HEALTH = list(HealthCheck)
ORDINARY = settings(deadline=None, derandomize=True, database=None, suppress_health_check=HEALTH)
MANY = settings(deadline=None, suppress_health_check=HEALTH, print_blob=True)

Law = Callable[..., None]
LAWS: dict[str, tuple[Law, dict[str, Any]]] = {}

ratios = st.sampled_from((0.3, 0.4, 0.5))
seeds = st.integers(0, 9)


def law(examples: int, **strategies: Any) -> Callable[[Law], Law]:
    """A test of drawn values: so many in an ordinary run, any number in a slow one."""

    def register(function: Law) -> Law:
        LAWS[function.__name__] = (function, strategies)
        return settings(ORDINARY, max_examples=examples)(given(**strategies)(function))

    return register


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shrunk(net: nn.Module, x: Tensor, **options: Any) -> fx.GraphModule:
    """`transform`, which may find nothing to remove, but must not give up on sizes that it could count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(net, x, **{"prefer": "graph", **options})
    held = ("channels stay at", "cannot be recounted")
    assert [reason for reason in fxprune.record(small).reasons if any(text in reason for text in held)] == []
    return small


def error(ours: Tensor, reference: Tensor) -> float:
    """max |ours - reference| / max |reference|"""
    assert ours.shape == reference.shape
    return float((ours - reference).detach().abs().max() / (reference.detach().abs().max() or 1.0))


def tensors(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by every name it has."""
    return {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}


# -- the laws -------------------------------------------------------------------------------------------------


@law(6, program=programs())
def test_keeping_all_changes_nothing(program: Program) -> None:
    net, x = build(program), images(program)
    with pytest.warns(fxprune.NothingRemovedWarning, match="the ratio is 0|no channel of this model can be removed"):
        same = fxprune.transform(net, x, ratio=0.0)
    assert torch.equal(same(x), net(x))
    assert {k: v.shape for k, v in tensors(same).items()} == {k: v.shape for k, v in tensors(net).items()}
    assert fxprune.record(same).removed == {}


@law(15, program=programs(), ratio=ratios, seed=seeds)
def test_exact_channels_never_existed(program: Program, ratio: float, seed: int) -> None:
    """The masked original needs no rule: it only sets the removed slots to zero."""
    net, x = build(program), images(program)
    small = shrunk(net, x, ratio=ratio, importance="random", seed=seed, exact=True, verify=False)
    made = fxprune.record(small)
    assert made.exact
    fresh = images(program, seed + 1, batch=3)
    reference = fxprune.masked(net, made.removed)
    assert error(small(fresh), reference(fresh)) < ROUNDING


@law(15, program=programs(), ratio=ratios, seed=seeds)
def test_all_channels_verify(program: Program, ratio: float, seed: int) -> None:
    net, x = build(program), images(program)
    small = shrunk(net, x, ratio=ratio, importance="random", seed=seed, verify=False)
    assert fxprune.verify(net, small, images(program, seed + 1)) < ROUNDING
    if fxprune.record(small).exact:
        assert error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < ROUNDING


borders = st.sampled_from(("carrier", "map"))


@law(8, program=programs(), ratio=ratios, seed=seeds, border=borders)
def test_constants_are_folded(program: Program, ratio: float, seed: int, border: str) -> None:
    """The original whose layers lost the weights of some outputs, and nothing else, needs no rule either."""
    net, x = build(program), images(program)
    with warnings.catch_warnings():  # what stays can leave halves of unequal width, which bounds of slices may hold
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        options = {"ratio": ratio, "importance": "random", "seed": seed, "bias": "fold", "border": border}
        small = fxprune.transform(net, x, verify=False, prefer="graph", **options)
    fresh = images(program, seed + 1, batch=3)
    assert error(small(fresh), fxprune.masked(net, fxprune.record(small).zeroed)(fresh)) < ROUNDING
    assert fxprune.verify(net, small, fresh) < ROUNDING


@law(17, program=programs(), share=st.sampled_from((0.2, 0.5, 0.9)), seed=seeds, border=borders)
def test_what_is_zero_goes_and_nothing_changes(program: Program, share: float, seed: int, border: str) -> None:
    net, x = emptied(build(program), share, seed), images(program)
    with warnings.catch_warnings():  # bounds of slices may hold halves of unequal width
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(net, x, masks="zeros", border=border, verify=False, prefer="graph")
    fresh = images(program, seed + 1, batch=3)
    expected = net(fresh)
    assume(expected.isfinite().all())  # a weight norm of zeros alone makes the original 0 / 0
    assert error(small(fresh), expected) < ROUNDING


def emptied(net: nn.Module, share: float, seed: int) -> nn.Module:
    """Random outputs of random layers lose their weights, sometimes their biases and norms; or inputs do."""
    coin = np.random.default_rng(seed)
    with torch.no_grad():
        for tensor in net.parameters():
            if coin.random() < 0.6:
                dim = int(coin.random() < 0.2) if tensor.ndim > 1 else 0
                gone = np.flatnonzero(coin.random(tensor.shape[dim]) < share)
                tensor.index_fill_(dim, torch.from_numpy(gone), 0.0)
    return net


@law(9, program=programs())
def test_rules_do_not_fail(program: Program) -> None:
    """A rule that raises is turned into locked channels: safe, but never meant."""
    analysis = fxprune.analyze(build(program), images(program))
    assert [event for event in analysis.events if "please report" in event.why] == []


def later(removed: Removed, first: Removed, net: nn.Module) -> Removed:
    """Returns `removed` without `first`, in the numbering of the model from which `first` was removed."""
    result: Removed = {}
    for name, dims in removed.items():
        for dim, indices in dims.items():
            gone = set(first.get(name, {}).get(dim, ()))
            kept = [i for i in range(tensors(net)[name].shape[dim]) if i not in gone]
            if rest := [kept.index(i) for i in indices if i not in gone]:
                result.setdefault(name, {})[dim] = rest
    return result


@law(4, program=programs(), ratio=ratios, seed=seeds)
def test_two_steps_are_one(program: Program, ratio: float, seed: int) -> None:
    """Half of the channels, then the other half: the same as all at once, to the last bit of every weight."""
    net, x = build(program), images(program)
    analysis = fxprune.analyze(net, x)
    plan = analysis.plan(ratio=ratio, importance="random", seed=seed)
    assume(plan)
    chosen = removal_of(analysis, plan).removed
    first = plan_from(analysis, chosen & (np.random.default_rng(seed).random(len(chosen)) < 0.5), ())
    second = fxprune.Plan(later(plan.removed, first.removed, net))
    at_once = shrunk(net, x, plan=plan, verify=False)
    half = shrunk(net, x, plan=first, verify=False)
    stepwise = shrunk(half, x, plan=second, verify=False)
    ours, theirs = tensors(stepwise), tensors(at_once)
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert error(stepwise(x), at_once(x)) < ROUNDING


@law(7, program=programs(longest=4), seed=seeds)
def test_masks_in_two_steps_are_one(program: Program, seed: int) -> None:
    net, x = build(program), images(program)
    a, b = torch.rand(2, program.stem, generator=torch.Generator().manual_seed(seed)) < 0.7
    assume((a & b).any())
    try:
        at_once = shrunk(net, x, masks={"stem": a & b}, verify=False)
    except fxprune.PlanError:  # a tensor behind the stem would be empty
        return
    half = shrunk(net, x, masks={"stem": a}, verify=False)
    gone = set(fxprune.record(half).removed.get("stem.weight", {}).get(0, ()))
    stays = torch.tensor([i for i in range(program.stem) if i not in gone])
    assume(b[stays].any())
    stepwise = shrunk(half, x, masks={"stem": b[stays]}, verify=False)
    # part of a row of a grid stays, and may go when another part is asked for too
    assume(not any("stay" in reason for model in (half, stepwise) for reason in fxprune.record(model).reasons))
    assert [t.shape for t in tensors(stepwise).values()] == [t.shape for t in tensors(at_once).values()]
    assert error(stepwise(x), at_once(x)) < ROUNDING


def everything(net: nn.Module) -> list[Any]:
    """All that can be seen of a model, bits and identities."""
    seen: list[Any] = [net.code, str(net.graph)] if isinstance(net, fx.GraphModule) else []
    for name, module in net.named_modules(remove_duplicate=False):
        hooks = [repr(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
        settings_of = {k: repr(v) for k, v in vars(module).items() if not k.startswith("_")}
        seen.append((name, id(module), type(module), module.training, hooks, settings_of))
    for name, tensor in tensors(net).items():
        bits = tensor.detach().numpy().tobytes()
        seen.append((name, id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, bits))
        seen.append((tensor.requires_grad, tensor.grad, tensor.is_leaf, dict(tensor.__dict__)))
    return seen


@law(4, program=programs(), ratio=ratios, seed=seeds, traced=st.booleans())
def test_the_original_is_untouched(program: Program, ratio: float, seed: int, traced: bool) -> None:
    net, x = build(program), images(program)
    coin = np.random.default_rng(seed)
    for module in net.modules():
        module.training = bool(coin.random() < 0.3)
    for parameter in net.parameters():
        parameter.requires_grad_(bool(coin.random() < 0.7))
    net.get_submodule("stem").register_forward_hook(_hook)
    if traced:
        net = fx.symbolic_trace(net)
    before, pixels = everything(net), x.clone()
    small = shrunk(net, x, ratio=ratio, importance="random", seed=seed)
    fxprune.verify(net, small, x)
    with torch.no_grad():
        for tensor in tensors(small).values():
            tensor.zero_()  # shared memory would show
    assert everything(net) == before
    assert torch.equal(x, pixels)


def _hook(module: nn.Module, args: Any, output: Tensor) -> None:
    pass


SIZES = st.integers(1, 8)
NAMES = st.sampled_from(("stem", "head.last", "head", "stem.weight", "nothing", "", "*", "conv0.body.0.conv"))
NUMBERS = st.sampled_from((0, 0.5, 0.99, 1, 1.5, -0.1, True, "a lot", float("nan"), float("inf"), None, {"*": 0.5}, {}))
BOOLS = st.lists(st.booleans(), min_size=1, max_size=8).map(torch.tensor)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "ratio": NUMBERS | st.dictionaries(NAMES, NUMBERS, max_size=2),
        "masks": st.dictionaries(NAMES, BOOLS | st.just(torch.ones(4)) | st.just([True]), max_size=2),
        "importance": st.sampled_from(("l1", "l2", "random", "best", len, lambda group: torch.zeros(group.size), 3)),
        "ignore": NAMES | st.lists(NAMES, max_size=2) | st.sampled_from((nn.Conv2d, nn.Linear(1, 1), 7, None)),
        "round_to": st.sampled_from((1, 2, 4, 0, -1, 2.0, "2", None)),
        "exact": st.booleans(),
        "seed": st.none() | seeds,
        "strict": st.booleans(),
    },
)
INPUTS = st.sampled_from(
    (
        None,
        3,
        (),
        {},
        torch.zeros(2, 4, 4, 5, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(2, 3, 4, 5),
        torch.zeros(2, 3, 4, 5, device="meta", dtype=torch.float64),
        {"x": torch.zeros(2, 3, 4, 5, dtype=torch.float64)},
        {"y": torch.zeros(2, 3, 4, 5, dtype=torch.float64)},
        (torch.zeros(2, 3, 4, 5, dtype=torch.float64), 1),
        torch.zeros(0, 3, 4, 5, dtype=torch.float64),
    )
)


@law(23, program=programs(longest=3), options=OPTIONS, inputs=st.none() | INPUTS.map(lambda value: [value]))
def test_only_its_own_errors_escape(program: Program, options: dict[str, Any], inputs: list[Any] | None) -> None:
    net = build(program)
    before = everything(net)
    with contextlib.suppress(fxprune.FxpruneError):
        small = shrunk(net, images(program) if inputs is None else inputs[0], **options)
        assert isinstance(fxprune.record(small), fxprune.Record)
    assert everything(net) == before


class _Seen(fx.Interpreter):
    """Every shape that a graph computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.shapes[n.name] = value.shape
        return result


@law(10, program=programs(), seed=seeds, ratio=st.sampled_from((0.5, 0.9, 0.99)))
def test_nothing_becomes_empty(program: Program, ratio: float, seed: int) -> None:
    net, x = build(program), images(program)
    small = shrunk(net, x, ratio=ratio, importance="random", seed=seed, verify=False)
    runs = []
    for model in (small, fx.symbolic_trace(net)):
        runs.append(_Seen(model))
        runs[-1].run(x)
    ours, originals = (run.shapes for run in runs)
    shapes = {**ours, **{name: tensor.shape for name, tensor in tensors(small).items()}}
    assert [name for name, shape in shapes.items() if 0 in shape and 0 not in originals.get(name, ())] == []


@law(4, program=programs(), ratio=ratios)
def test_names_do_not_matter(program: Program, ratio: float) -> None:
    """Other names of modules, the reverse of the alphabet; other names of the graph's nodes."""
    x = images(program)
    net, renamed = (
        build(program),
        build(program, lambda name: "z" + "".join(chr(219 - ord(c)) for c in name[:1]) + name),
    )
    graph = fx.symbolic_trace(net)
    for number, node in enumerate(reversed(graph.graph.nodes)):
        node._rename(f"n{number}")
    graph.recompile()
    small, *others = (shrunk(model, x, ratio=ratio, verify=False) for model in (net, renamed, graph))
    for other in others:
        assert [t.shape for t in tensors(other).values()] == [t.shape for t in tensors(small).values()]
        assert torch.equal(other(x), small(x))


@law(7, program=programs(), ratio=ratios, seed=seeds)
def test_the_record_tells_what_happened(program: Program, ratio: float, seed: int) -> None:
    """Every tensor of the small model is the original's without the removed indices, bit for bit."""
    net, x = build(program), images(program)
    small = shrunk(net, x, ratio=ratio, importance="random", seed=seed)
    made = fxprune.record(small)
    originals, ours = tensors(net), tensors(small)
    assert set(small.state_dict()) == set(net.state_dict())
    assert made.before == {name: tuple(t.shape) for name, t in originals.items()}
    assert made.after == {name: tuple(t.shape) for name, t in ours.items()}
    assert made.error is not None
    assert made.error < ROUNDING
    for name, tensor in originals.items():
        for dim, indices in made.removed.get(name, {}).items():
            assert indices == sorted(set(indices))
            assert 0 <= indices[0] <= indices[-1] < originals[name].shape[dim]
            tensor = tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in indices]))
        assert tensor.shape == ours[name].shape
        if name.endswith("positions"):
            assert sorted(ours[name].tolist()) == list(range(len(tensor)))
        else:
            assert torch.equal(tensor, ours[name])
    layers = json.loads(made.report(format="json"))["layers"]
    said = {f"{row['name']}.{t['name']}".strip("."): tuple(t["after"]) for row in layers for t in row["tensors"]}
    assert said == dict(made.after)
    assert made.cost is not None
    macs = [row["macs"]["after"] for row in layers]  # None for a Fourier transform, and then for the model
    assert (None if None in macs else sum(macs)) == made.cost[1].macs


# -- networks over tokens, on every path ----------------------------------------------------------------------

TAKEN: Counter[str] = Counter()
"""Path -> how often it was taken."""


def pruned(net: nn.Module, args: tuple[Any, ...], **options: Any) -> nn.Module:
    """`transform` on any path; the plain hidden layer of the head must lose channels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.ChannelsStayWarning)  # a graph loses more, but has one mode
        warnings.simplefilter("ignore", fxprune.ClassLostWarning)
        warnings.simplefilter("ignore", fxprune.FixedSizesWarning)
        small = fxprune.transform(net, args, importance="random", **options)
    made = fxprune.record(small)
    assert made.removed.get("hidden.weight", {}).get(0), "a plain hidden layer keeps all of its channels"
    assert [reason for reason in made.reasons if "please report" in reason] == []
    return small


def leaf_error(ours: Any, reference: Any) -> float:
    """The largest `error` of the tensors of two results, whatever they are packed in."""
    assert type(ours) is type(reference)
    pairs = list(zip(leaves(ours), leaves(reference), strict=True))
    assert pairs
    return max(error(a, b) for a, b in pairs)


def assert_varied(seen: Counter[str], wanted: set[str], part: float = 1.0) -> None:
    """Each of the wanted features was seen, or such a part of them."""
    missing = sorted(feature for feature in wanted if not seen[feature])
    assert len(missing) <= (1 - part) * len(wanted), missing


@law(6, program=token_programs(), ratio=ratios, seed=seeds)
def token_channels_never_existed(program: Tokens, ratio: float, seed: int) -> None:
    net = build_tokens(program)
    prefer = ("graph", None)[seed % 2]
    small = pruned(net, tokens(net, program), ratio=ratio, seed=seed, exact=True, verify=False, prefer=prefer)
    made = fxprune.record(small)
    TAKEN[made.path] += 1
    assert made.exact
    fresh = tokens(net, program, seed + 1)
    with torch.no_grad():
        assert leaf_error(small(*fresh), fxprune.masked(net, made.removed)(*fresh)) < ROUNDING


def test_token_channels_never_existed() -> None:
    """The masked original needs no rule. Every path is taken by some network."""
    TAKEN.clear()
    token_channels_never_existed()
    assert_varied(TAKEN, {"fx", "eager", "export"})


@law(6, program=token_programs(), ratio=ratios, seed=seeds)
def test_all_token_channels_verify(program: Tokens, ratio: float, seed: int) -> None:
    net = build_tokens(program)
    small = pruned(net, tokens(net, program), ratio=ratio, seed=seed)
    made = fxprune.record(small)
    assert made.error is not None
    assert made.error < ROUNDING
    fresh = tokens(net, program, seed + 1)
    with torch.no_grad():
        ours, originals = small(*fresh), net(*fresh)
        assert [t.shape for t in leaves(ours)] == [t.shape for t in leaves(originals)]
        if made.exact:
            assert leaf_error(ours, fxprune.masked(net, made.removed)(*fresh)) < ROUNDING


@law(3, program=token_programs(longest=2), ratio=ratios, seed=seeds)
def test_every_path_is_right_or_refuses(program: Tokens, ratio: float, seed: int) -> None:
    net = build_tokens(program)
    args, fresh = tokens(net, program), tokens(net, program, seed + 1)
    for path in PATHS:
        with contextlib.suppress(fxprune.FxpruneError), torch.no_grad():
            small = pruned(net, args, ratio=ratio, seed=seed, exact=True, verify=False, path=path)
            made = fxprune.record(small)
            assert made.path == path
            assert leaf_error(small(*fresh), fxprune.masked(net, made.removed)(*fresh)) < ROUNDING


@law(3, program=token_programs(longest=2), ratio=ratios, seed=seeds, path=st.sampled_from((None, *PATHS)))
def test_the_original_over_tokens_is_untouched(program: Tokens, ratio: float, seed: int, path: str | None) -> None:
    net = build_tokens(program)
    args = tokens(net, program)
    before, inputs = everything(net), [t.clone() for t in leaves(args)]
    with contextlib.suppress(fxprune.FxpruneError):
        small = pruned(net, args, ratio=ratio, seed=seed, path=path)
        with torch.no_grad():
            for tensor in tensors(small).values():
                tensor.zero_()  # shared memory would show
    assert everything(net) == before
    assert all(torch.equal(a, b) for a, b in zip(leaves(args), inputs, strict=True))


@law(400, program=token_programs(longest=5))
def token_programs_are_varied(program: Tokens) -> None:
    TAKEN.update(features(build_tokens(program)))


def test_token_programs_are_varied() -> None:
    """Most ways to write a block that there are come up in an ordinary run, all in a long one."""
    TAKEN.clear()
    token_programs_are_varied()
    assert len(Choices.offered) > 250
    assert_varied(TAKEN, Choices.offered, part=0.9)


def test_the_checks_of_this_file_find_wrong_models() -> None:
    program = Tokens(4, (Layer("self", (0, 1)), Layer("mlp", (1,))), (1,), 3)
    net = build_tokens(program)
    args = tokens(net, program)
    small = pruned(net, args, ratio=0.4, seed=0, exact=True)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert leaf_error(small(*args), reference(*args)) < ROUNDING
    wrong = copy.deepcopy(small)
    with torch.no_grad():
        wrong.get_parameter("last.bias")[0] += 1e-6
    assert leaf_error(wrong(*args), reference(*args)) > ROUNDING
    assert leaf_error(small(*args), net(*args)) > ROUNDING
    x = small(*args)
    for ours, theirs in (([x], x), ([x], [x, x]), ([x[:1]], [x]), ([], [])):
        with pytest.raises((AssertionError, ValueError)):
            leaf_error(ours, theirs)
    with pytest.raises(AssertionError, match="keeps all of its channels"):
        pruned(net, args, ratio=0.4, seed=0, ignore="hidden")
    before = everything(net)
    assert everything(net) == before
    with torch.no_grad():
        net.get_parameter("last.bias")[0] += 1e-6
    assert everything(net) != before
    with pytest.raises(AssertionError, match="mlp gate glu"):
        assert_varied(Counter(features(net)), {"mlp gate chunk", "mlp gate glu"}, part=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAWS))
def test_thousands_of_examples(name: str) -> None:
    function, strategies = LAWS[name]
    examples = int(os.environ.get("FXPRUNE_EXAMPLES", "1000"))
    TAKEN.clear()
    settings(MANY, max_examples=examples)(given(**strategies)(function))()
    if TAKEN and examples >= 1000:
        assert_varied(TAKEN, set(PATHS) if name == "token_channels_never_existed" else Choices.offered, part=0.98)
