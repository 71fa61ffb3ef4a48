"""The one selector: what each pattern names, which of several counts, and that every option agrees."""

from __future__ import annotations

import fnmatch
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import PlanError
from fxprune.names import Level, chain, find, find_all, literals, matching, names_of
from fxprune.pattern_values import Candidate, assign
from fxprune.pruner.config import layers_to_prune as layers_of_config
from fxprune.sparse import SparseLinear, activation_statistics, freeze, insert_thresholds, sparsify_model
from fxprune.sparse.weights.targets import named_weights as weights_of
from fxprune.sparse.weights.targets import per_target

WIDTH = 8


class Block(nn.Sequential):
    """A type that is a block."""


class Wide(nn.Linear):
    """A type that is a layer, derived from another."""


def network():
    """Layers "a[0]" and "a0", each of which a glob takes for the other, a block, and an output layer."""
    layers = OrderedDict()
    layers["a[0]"] = nn.Linear(4, WIDTH)
    layers["r1"] = nn.ReLU()
    layers["a0"] = nn.Linear(WIDTH, WIDTH)
    layers["r2"] = nn.ReLU()
    layers["body"] = Block(nn.Linear(WIDTH, WIDTH), nn.ReLU(), Wide(WIDTH, WIDTH), nn.ReLU())
    layers["head"] = nn.Linear(WIDTH, 3)
    return nn.Sequential(layers).double().eval()


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
HIDDEN = {"a[0]", "a0", "body.0", "body.2"}
WORDS = {
    "a name with brackets": (lambda net: "a[0]", {"a[0]"}),
    "a name": (lambda net: "a0", {"a0"}),
    "a layer": (lambda net: net.get_submodule("a[0]"), {"a[0]"}),
    "the name of a layer in a block": (lambda net: "body.2", {"body.2"}),
    "the name of a block": (lambda net: "body", {"body.0", "body.2"}),
    "a block": (lambda net: net.body, {"body.0", "body.2"}),
    "a glob over layers": (lambda net: "a*", {"a[0]", "a0"}),
    "a glob over one block": (lambda net: "bod?", {"body.0", "body.2"}),
    "a glob over layers of a block": (lambda net: "body.[0-1]", {"body.0"}),
    "everything": (lambda net: "*", HIDDEN),
    "the model": (lambda net: net, HIDDEN),
    "a type": (lambda net: nn.Linear, HIDDEN),
    "a derived type": (lambda net: Wide, {"body.2"}),
    "a type of blocks": (lambda net: Block, {"body.0", "body.2"}),
}


def layers_in(names):
    return {name.rpartition(".")[0] for name in names if name.endswith(".weight")} - {"head"}


def opened(plan):
    return {name.removesuffix(".bias") for name in plan.removed if name.endswith(".bias")}


def by_ratio(net, pattern):
    return opened(fxprune.analyze(net, X).plan(ratio={pattern: 0.5}))


def by_ignore(net, pattern):
    with torch.no_grad():
        groups = {group.name for group in fxprune.analyze(net, X).groups}
    if pattern in ("*", nn.Linear) or pattern is net:
        with pytest.warns(fxprune.NothingRemovedWarning):
            small = fxprune.transform(net, X, ratio=0.5, ignore=pattern)
        return groups - opened(fxprune.record(small).plan)
    return groups - opened(fxprune.analyze(net, X).plan(ratio=0.5, ignore=pattern))


def by_masks(net, pattern):
    if pattern in ("*", nn.Linear) or pattern is net:  # the output layer has another width
        net.head = nn.Linear(WIDTH, WIDTH).double()
    mask = torch.arange(WIDTH) % 2 == 0
    return opened(fxprune.analyze(net, X).plan(masks={pattern: mask}))


def by_freeze(net, pattern):
    return layers_in(freeze(net, pattern).parameters)


def by_masks_of_freeze(net, pattern):
    if pattern in ("*", nn.Linear) or pattern is net:
        net.head = nn.Linear(WIDTH, WIDTH).double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return layers_in(freeze(net, {pattern: torch.arange(WIDTH) % 2 == 0}, optimizer=optimizer).partial)


def by_config(net, pattern):
    return {target.name for target in layers_of_config(net, [pattern])} - {"head"}


def by_where(net, pattern):
    return layers_in(target.name for target in weights_of(net, pattern))


def by_a_dict_of_weights(net, pattern):
    return layers_in(per_target(net, {pattern: 0.5}, weights_of(net, None), "sparsity"))


USERS = [by_ratio, by_ignore, by_masks, by_freeze, by_masks_of_freeze, by_config, by_where, by_a_dict_of_weights]


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
@pytest.mark.parametrize("word", WORDS)
def test_every_option_understands_the_same_words(user, word):
    pattern, expected = WORDS[word]
    net = network()
    assert user(net, pattern(net)) == expected


ACTIVATIONS = {
    "a name": (lambda net: "r1", {"r1"}),
    "a module": (lambda net: net.r1, {"r1"}),
    "the name of a block": (lambda net: "body", {"body.1", "body.3"}),
    "a block": (lambda net: net.body, {"body.1", "body.3"}),
    "a glob": (lambda net: "r*", {"r1", "r2"}),
    "a glob over blocks": (lambda net: "bod?", {"body.1", "body.3"}),
    "everything": (lambda net: "*", {"r1", "r2", "body.1", "body.3"}),
    "a type": (lambda net: nn.ReLU, {"r1", "r2", "body.1", "body.3"}),
    "a type of blocks": (lambda net: Block, {"body.1", "body.3"}),
}


@pytest.mark.parametrize("path", ["fx", "modules"])
@pytest.mark.parametrize("word", ACTIVATIONS)
def test_thresholds_understand_the_same_words(word, path):
    pattern, expected = ACTIVATIONS[word]
    net = network()
    made = insert_thresholds(net, pattern(net), threshold=0.1, path=path)
    assert set(made.layers.values()) == expected


def test_statistics_and_sparse_layers_understand_the_same_words():
    net = network()
    net.body[2] = nn.Linear(WIDTH, WIDTH).double()
    for pattern, expected in (("a[0]", {"a[0]"}), (net.body, {"body.0", "body.2"}), ("body", {"body.0", "body.2"})):
        assert set(activation_statistics(net, [X], where=pattern, progress=False)) == expected
        assert sparse_layers(sparsify_model(net, 0.1, where=pattern)) == expected
    assert sparse_layers(sparsify_model(net, 0.1, where="body", ignore="body.0")) == {"body.2"}
    assert sparse_layers(sparsify_model(net, 0.1, ignore=[net.body, "a*"])) == {"head"}


def sparse_layers(net):
    return {name for name, module in net.named_modules() if isinstance(module, SparseLinear)}


NOTHING = {
    "unknown": ("bodyy", 'names nothing: "bodyy"\n  why  did you mean "body"'),
    "a glob with a part that is wrong": ("bdy.*", 'names nothing: "bdy.*"\n  why  did you mean "body.*"?'),
    "a row of a report": ("body.0-1", 'reports write repeated blocks in one row; did you mean "body.[0-1]"?'),
    "a glob that fits nothing": ("none*", 'names nothing: "none*"\n  why  '),
    "no name": ("", ""),
    "a stranger": (nn.Linear(1, 1), "a module that is not part of the model: Linear"),
    "an absent type": (nn.Conv3d, "a type that the model has no module of: Conv3d"),
    "a type of something else": (dict, "a type that the model has no module of: dict"),
    "a number that is no group": (99, ""),
    "a fraction": (0.5, "cannot be a float"),
    "a truth value": (True, "cannot be a bool"),
}
EVERYBODY = [
    *USERS,
    lambda net, pattern: insert_thresholds(net, pattern, threshold=0.1),
    lambda net, pattern: insert_thresholds(net, pattern, threshold=0.1, path="modules"),
    lambda net, pattern: activation_statistics(net, [X], where=pattern, progress=False),
    lambda net, pattern: sparsify_model(net, 0.1, where=pattern),
    lambda net, pattern: sparsify_model(net, 0.1, ignore=pattern),
]


@pytest.mark.parametrize("user", range(len(EVERYBODY)))
@pytest.mark.parametrize("word", NOTHING)
def test_a_pattern_that_names_nothing_is_an_error(user, word):
    pattern, text = NOTHING[word]
    with pytest.raises(PlanError) as caught:
        EVERYBODY[user](network(), pattern)
    assert text in str(caught.value)


def test_none_names_nothing():
    for user in (by_ratio, by_ignore, by_masks, by_freeze, by_masks_of_freeze, by_a_dict_of_weights):
        with pytest.raises(PlanError, match="cannot be a NoneType"):
            user(network(), None)


# -- several patterns ---------------------------------------------------------------------------------------------


def shares(net, ratio):
    """Returns for each group that becomes smaller the number of removed channels."""
    plan = fxprune.analyze(net, X).plan(ratio=ratio)
    return {name.removesuffix(".bias"): len(dims[0]) for name, dims in plan.removed.items() if name.endswith(".bias")}


def test_the_most_exact_pattern_of_a_dict_counts_in_any_order():
    net = network()
    ranked = [
        (nn.Module, 1 / 8, {"a[0]", "a0", "body.0", "body.2"}),
        (nn.Linear, 2 / 8, {"a[0]", "a0", "body.0", "body.2"}),
        (Wide, 3 / 8, {"body.2"}),
        ("*", 4 / 8, {"a[0]", "a0", "body.0", "body.2"}),
        ("bod*", 5 / 8, {"body.0", "body.2"}),
        ("body", 6 / 8, {"body.0", "body.2"}),
        ("body.2", 7 / 8, {"body.2"}),
    ]
    for size in range(1, len(ranked) + 1):
        expected = {}
        for _, share, meant in ranked[:size]:
            expected.update(dict.fromkeys(meant, round(share * 8)))
        ratio = {pattern: share for pattern, share, _ in ranked[:size]}
        assert shares(net, ratio) == expected
        assert shares(net, dict(reversed(ratio.items()))) == expected


def test_masks_and_weights_take_the_most_exact_pattern_too():
    net = network()
    keep = {n: torch.arange(WIDTH) >= n for n in (1, 2, 3)}
    plan = fxprune.analyze(net, X).plan(
        masks={"body.0": keep[1], "*y": keep[2], nn.Linear: keep[3], "head": torch.ones(3) > 0}
    )
    assert {name: len(dims[0]) for name, dims in plan.removed.items() if name.endswith(".bias")} == {
        "a[0].bias": 3,
        "a0.bias": 3,
        "body.0.bias": 1,
        "body.2.bias": 2,
    }
    asked = per_target(net, {"body.2.weight": 0.1, "body": 0.2, "*": 0.3}, weights_of(net, None), "sparsity")
    assert asked == {
        "a[0].weight": 0.3,
        "a0.weight": 0.3,
        "body.0.weight": 0.2,
        "body.2.weight": 0.1,
        "head.weight": 0.3,
    }


@pytest.mark.parametrize(
    ("ratio", "sentences"),
    [
        (lambda net: {"a*": 0.1, "*0": 0.2}, ['"a*" and "*0"', "a0:channels", "a glob with 1 literal characters"]),
        (lambda net: {"a0": 0.1, net.a0: 0.1}, ['"a0" and the module Linear', "an exact name or a module"]),
        (lambda net: {"body": 0.1, net.body: 0.2}, ['"body" and the module Block', "body.0:channels", "nearest block"]),
        (lambda net: {1: 0.1, "a0:channels@a0.weight[0]": 0.2}, ['1 and "a0:channels@a0.weight[0]"', "one group"]),
    ],
)
def test_a_tie_is_an_error_that_names_both_patterns_and_the_group(ratio, sentences):
    net = network()
    with pytest.raises(PlanError) as caught:
        fxprune.transform(net, X, ratio=ratio(net))
    for sentence in ("ratio says two things of one", *sentences):
        assert sentence in str(caught.value)


def test_a_tie_of_masks_names_the_layer():
    mask, net = torch.arange(WIDTH) > 0, network()
    with pytest.raises(PlanError, match=r'masks says two things of one: "a0" and "a0\.weight"\n  at   layer "a0"'):
        fxprune.transform(net, X, masks={"a0": mask, "a0.weight": mask})
    optimizer = torch.optim.SGD(net.parameters(), 1)
    with pytest.raises(PlanError, match=r'freeze says two things of one: .*\n  at   parameter "a0\.bias"'):
        freeze(net, {"a0.bi?s": mask, "?0.bias": mask}, optimizer=optimizer)


def test_a_mask_of_a_block_is_for_the_weights_of_its_layers():
    stem = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))  # num_batches_tracked has no channels
    net = nn.Sequential(OrderedDict(stem=stem, last=nn.Conv2d(6, 2, 1))).eval()
    plan = fxprune.analyze(net, torch.randn(1, 3, 4, 4)).plan(masks={"stem": torch.arange(6) > 0})
    assert plan.removed["stem.1.weight"] == {0: [0]}


def test_a_parameter_of_the_model_itself_is_named_by_a_glob_over_everything():
    net = nn.Sequential(nn.Linear(2, 3))
    net.gain = nn.Parameter(torch.ones(3, 3))
    assert find(names_of(net), "*", what="ignore").tensors == {"gain"}
    assert find(names_of(net), "0*", what="ignore").tensors == frozenset()


def test_every_name_of_a_shared_layer_names_it():
    net = nn.Sequential(OrderedDict(one=nn.Linear(8, 8), two=nn.Linear(8, 8)))
    net.again = net.one
    assert sparse_layers(sparsify_model(net, 0.1, ignore="again")) == {"two"}
    assert per_target(net, {"again": 0.5}, weights_of(net, None), "sparsity") == {"one.weight": 0.5}


def test_a_layer_that_cannot_be_pruned_is_no_group():
    with pytest.raises(PlanError, match='ratio names no group: "head"') as caught:
        fxprune.transform(network(), X, ratio={"head": 0.5})
    assert "the model has it, but the only groups are " in str(caught.value)
    assert "report()` says what holds its channels" in str(caught.value)


def test_a_copy_of_a_layer_is_said_to_be_another_module_of_its_type():
    with pytest.raises(
        PlanError, match="not part of the model: Linear\n  why  the model has other modules of this type"
    ):
        find(names_of(network()), nn.Linear(1, 1), what="ignore")


# -- groups -------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """One layer whose outputs are two groups of the same name, kind and tensor."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(4, 12)
        self.one, self.two = nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x):
        y = self.both(x)
        return self.one(y[:, :4]) + self.two(y[:, 4:])


def test_a_key_names_one_group_and_a_name_with_a_kind_all_that_have_it():
    net = Halves().double().eval()
    analysis = fxprune.analyze(net, X)
    first, second = analysis.groups
    assert (first.key, second.key) == ("both:channels@both.weight[0]", "both:channels@both.weight[0]#2")
    for pattern, expected in (
        (second, {1}),
        (second.key, {1}),
        (1, {1}),
        (first.key, {0}),
        ("both:channels", {0, 1}),
        ("both", {0, 1}),
        ("*:channels", {0, 1}),
    ):
        removed = analysis.plan(ratio={pattern: 0.5}).removed
        assert {number for number, layer in enumerate(("one", "two")) if f"{layer}.weight" in removed} == expected
        kept = analysis.plan(ratio=0.5, ignore=[pattern]).removed
        assert {n for n, layer in enumerate(("one", "two")) if f"{layer}.weight" not in kept} == expected
    both = analysis.plan(ratio={"both": 0.25, second: 0.5, "*": 0.75}).removed
    assert (len(both["one.weight"][1]), len(both["two.weight"][1])) == (1, 4)
    other = fxprune.analyze(Halves().double().eval(), X).groups[1]
    assert analysis.plan(ratio={other: 0.5}).removed.keys() == {"both.weight", "both.bias", "two.weight"}
    with pytest.raises(PlanError, match=r'names nothing: the group "body\.0:channels@body\.0\.weight'):
        analysis.plan(ratio={fxprune.analyze(network(), X).groups[2]: 0.5})
    with pytest.raises(PlanError, match="group 2\n  why  the groups are numbered 0 to 1"):
        analysis.plan(ratio={2: 0.5})


def test_heads_have_keys():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    groups = fxprune.analyze(net, torch.randn(1, 3, 8)).groups
    keys = [group.key for group in groups]
    assert len(set(keys)) == len(keys)
    assert all(
        key.startswith(f"{g.name}:{g.kind}@{g.producer.parameter}[") for key, g in zip(keys, groups, strict=True)
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.again = self.body[0]
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.body(x))


def test_a_coupled_layer_means_the_group_that_its_outputs_are_in():
    net = Residual().double().eval()
    analysis = fxprune.analyze(net, X)
    assert [group.name for group in analysis.groups] == ["stem", "body.0"]
    for pattern in ("body.2", net.body[2], "stem", net.stem):
        assert "stem.bias" in (removed := analysis.plan(ratio={pattern: 0.5}).removed)
        assert "body.0.bias" not in removed
    for pattern in ("body", net.body, "body.*"):
        assert "stem.bias" not in (removed := analysis.plan(ratio={pattern: 0.5}).removed), (
            "a group of its own name first"
        )
        assert "body.0.bias" in removed
    for name in ("again", net.again, "again.weight"):
        assert "body.0.bias" in analysis.plan(ratio={name: 0.5}).removed, "another name of the same layer"
        assert "body.0.bias" not in analysis.plan(ratio=0.5, ignore=name).removed
    with pytest.raises(PlanError, match=r'"stem" and "body\.2"'):
        analysis.plan(ratio={"stem": 0.5, "body.2": 0.25})


# -- laws ---------------------------------------------------------------------------------------------------------

LEAVES = st.text("ab0[]*?!-", min_size=1, max_size=3)
TREES = st.recursive(
    st.sampled_from([nn.Linear, nn.ReLU, Wide]),
    lambda inner: st.dictionaries(LEAVES, inner, min_size=1, max_size=3),
    max_leaves=8,
)


def grown(tree):
    if not isinstance(tree, dict):
        return tree() if tree is nn.ReLU else tree(1, 1)
    made = Block()
    for name, inner in tree.items():
        made.add_module(name, grown(inner))
    return made


@st.composite
def models(draw):
    net = nn.Module()
    for name, tree in draw(st.dictionaries(LEAVES, TREES, min_size=1, max_size=3)).items():
        net.add_module(name, grown(tree))
    return net


@st.composite
def requests(draw):
    """A model, and patterns for it of every kind, each of which names something."""
    net = draw(models())
    modules = dict(net.named_modules())
    named = sorted(set(modules) - {""})
    fitting = [g for n in named for g in (f"*{n[-1:]}", f"{n[:1]}*", "*", "?" * len(n)) if glob_hits(g, modules)]
    kinds = [kind for kind in (nn.Linear, Wide, Block, nn.Module) if any(isinstance(m, kind) for m in modules.values())]
    texts = st.sampled_from([*named, *fitting])
    patterns = st.one_of(texts, texts, st.sampled_from(kinds), st.sampled_from([modules[n] for n in named]))
    return net, draw(st.lists(patterns, min_size=1, max_size=5, unique=True))


def glob_hits(pattern, modules):
    return [] if pattern in modules else fnmatch.filter(modules, pattern)


def precedence(net, pattern, patterns, name):
    """The table of precedence once more, written down naively: bigger counts, None does not name it."""
    modules = dict(net.named_modules())
    around = list(chain(name))
    if isinstance(pattern, type):
        steps = [n for n, at in enumerate(around) if isinstance(modules[at], pattern)]
        derived = [p for p in patterns if isinstance(p, type) and p is not pattern and issubclass(p, pattern)]
        hidden = any(isinstance(modules[at], p) for p in derived for at in around)
        return (-1 if hidden else 0, -steps[0]) if steps else None
    if isinstance(pattern, str) and pattern not in modules:
        literal = sum(c not in "*?" for c in pattern)
        return (1, literal) if any(fnmatch.fnmatchcase(at, pattern) for at in around) else None
    meant = pattern if isinstance(pattern, str) else next(n for n, m in modules.items() if m is pattern)
    if meant not in around:
        return None
    return (3, 0) if meant == name else (2, -around.index(meant))


@settings(deadline=None, max_examples=200)
@given(requests())
def test_precedence_is_that_of_the_table(request):
    net, patterns = request
    patterns = [p for p in patterns if not isinstance(p, str) or p in dict(net.named_modules()) or "[" not in p]
    names = [name for name, _ in net.named_modules() if name]
    candidates = [Candidate(name, (name,)) for name in names]
    ranks = {name: {p: precedence(net, p, patterns, name) for p in patterns} for name in names}
    patterns = [p for p in patterns if any(ranks[name][p] for name in names)]
    best = {name: max((r for r in ranked.values() if r), default=None) for name, ranked in ranks.items()}
    tied = [n for n in names if best[n] and sum(r == best[n] for r in ranks[n].values()) > 1]
    values = {pattern: number for number, pattern in enumerate(patterns)}
    if tied:
        with pytest.raises(PlanError, match="says two things of one"):
            assign(names_of(net), values, candidates, what="ratio", kind="layer")
        return
    expected = {
        number: values[next(p for p in patterns if ranks[name][p] == best[name])]
        for number, name in enumerate(names)
        if best[name]
    }
    assert assign(names_of(net), values, candidates, what="ratio", kind="layer") == expected
    backwards = dict(reversed(values.items()))
    assert assign(names_of(net), backwards, candidates, what="ratio", kind="layer") == expected


@settings(deadline=None, max_examples=200)
@given(models(), st.text("ab0[]*?!-.", max_size=6))
def test_a_text_names_something_or_is_an_error(net, text):
    modules = dict(net.named_modules())
    tensors = dict(net.named_parameters())
    known = [*modules, *tensors]
    something = bool(text) and (text in known or bool(fnmatch.filter(known, text)))
    if not something:
        with pytest.raises(PlanError, match="freeze names nothing"):
            find_all(names_of(net), ["*", text], what="freeze")
        return
    match = find(names_of(net), text, what="freeze")
    assert match.modules or match.tensors
    if text in known:
        assert match.level is Level.NAME
        assert [*match.modules, *match.tensors] == [text]
    else:
        assert set(match.modules) == set(fnmatch.filter(modules, text))


@settings(deadline=None)
@given(models())
def test_every_name_and_every_module_names_itself(net):
    for name, module in net.named_modules():
        if name:
            assert list(find(names_of(net), name, what="freeze").modules) == [name], "however it is spelled"
        assert list(find(names_of(net), module, what="freeze").modules) == [name]


def test_globs_and_names():
    assert matching("a[0]", ["a0", "a[0]"]) == ["a[0]"]
    assert matching("a[[]0]", ["a0", "a[0]"]) == ["a[0]"]
    counts = {"": 0, "*": 0, "a*b?": 2, "[ab]c": 1, "[!a]c": 1, "a[]]": 2, "a[": 2, "layer1.*.conv": 12}
    assert {pattern: literals(pattern) for pattern in counts} == counts
