"""Attention with heads of any width: against `nn.MultiheadAttention`, and cut against the masked original."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.ops.module_use import Use
from fxprune.rewrite import attention
from fxprune.rewrite.attention import MultiheadAttention, narrow
from fxprune.rewrite.modules import recount
from tests.support import randomise, relative_error

N, L, S, E, H, D = 3, 5, 4, 12, 3, 4


def layer(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(seed)
    made = nn.MultiheadAttention(E, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made.eval()


def widened(original: nn.MultiheadAttention) -> MultiheadAttention:
    """The same layer as an instance of the class that prunes, nothing removed."""
    return narrow(copy.deepcopy(original), num_heads=H, head_dim=D, v_head_dim=D, scale=D**-0.5)


def masks(kind: str, heads: int, sources: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Padding (N, S) and attention masks (L, S) or (N*H, L, S), e.g. "padding", "bool 3"; source 0 stays visible."""
    kinds = kind.split()
    shape = (N * heads, L, sources) if "3" in kinds else (L, sources)
    padding, mask = torch.rand(N, sources) < 0.4, torch.rand(shape) < 0.4
    padding[:, 0], mask[..., 0] = False, False
    made: list[torch.Tensor | None] = []
    for name, tensor in (("padding", padding), ("mask", mask)):
        numbers = torch.randn(tensor.shape, dtype=torch.float64)
        made.append(None if name not in kinds else numbers if "float" in kinds else tensor)
    return made[0], made[1]


KINDS = ["", "padding", "float padding", "mask", "float mask", "mask 3", "float mask 3", "padding mask 3"]


def calls(same: str, batch_first: bool, kdim: int, vdim: int, heads: int = H) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Arguments of a call with every mask, with and without weights, with and without a batch."""
    torch.manual_seed(1)
    sources = L if same == "all" else S
    query = torch.randn(N, L, E, dtype=torch.float64)
    key = query if same == "all" else torch.randn(N, sources, kdim, dtype=torch.float64)
    value = key if same != "none" else torch.randn(N, sources, vdim, dtype=torch.float64)
    for kind, (needed, averaged) in itertools.product(KINDS, [(True, True), (True, False), (False, True)]):
        padding, mask = masks(kind, heads, sources)
        options = {"need_weights": needed, "average_attn_weights": averaged}
        order = {id(x): x if batch_first else x.transpose(0, 1).contiguous() for x in (query, key, value)}
        batch = [order[id(x)] for x in (query, key, value)]
        yield tuple(batch), {**options, "key_padding_mask": padding, "attn_mask": mask}
        single = {id(x): x[0] for x in (query, key, value)}
        first = None if padding is None else padding[0]
        own = mask[:heads] if mask is not None and mask.dim() == 3 else mask
        three = [single[id(x)] for x in (query, key, value)]
        yield tuple(three), {**options, "key_padding_mask": first, "attn_mask": own}
        if sources == L:
            causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
            keys = None if padding is None or not padding.is_floating_point() else padding
            yield tuple(batch), {**options, "attn_mask": causal, "key_padding_mask": keys, "is_causal": True}


@pytest.mark.parametrize("same", ["all", "key and value", "none"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 7}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_unpruned_it_computes_what_torch_computes(same: str, options: dict[str, Any], batch_first: bool) -> None:
    other = {"kdim": 7, "vdim": 7 if same == "key and value" else 10} if "kdim" in options else {}
    if other and same == "all":
        other = {"kdim": E, "vdim": E}
    widths = (other.get("kdim", E), other.get("vdim", E))
    original = layer(batch_first=batch_first, **{**options, **other})
    ours = widened(original)
    count = 0
    for args, kwargs in calls(same, batch_first, *widths):
        expected = original(*args, **kwargs)
        assert relative_error(ours(*args, **kwargs), expected) < 1e-12
        assert (ours(*args, **kwargs)[1] is None) == (expected[1] is None)
        count += 1
    assert count >= 48


def test_bias_and_zeros_may_both_be_appended() -> None:
    original = layer(add_bias_kv=True, add_zero_attn=True, kdim=5, vdim=6, batch_first=True)
    ours = widened(original)
    for args, kwargs in calls("none", True, 5, 6):
        assert relative_error(ours(*args, **kwargs), original(*args, **kwargs)) < 1e-12


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_draws_the_same_numbers(need_weights: bool) -> None:
    original = layer(dropout=0.4).train()
    ours, x = widened(original), torch.randn(L, N, E, dtype=torch.float64)
    torch.manual_seed(2)
    expected = original(x, x, x, need_weights=need_weights)
    torch.manual_seed(2)
    assert relative_error(ours(x, x, x, need_weights=need_weights), expected) < 1e-12
    assert relative_error(ours(x, x, x)[0], ours.eval()(x, x, x)[0]) > 1e-3


def test_arguments_that_torch_refuses_are_refused() -> None:
    ours, x = widened(layer()), torch.randn(L, N, E, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="give the mask too"):
        ours(x, x, x, is_causal=True)
    with pytest.raises(RuntimeError, match="attn_mask has shape"):
        ours(x, x, x, attn_mask=torch.zeros(1, L))
    with pytest.raises(ValueError, match="key_padding_mask has 1"):
        ours(x, x, x, key_padding_mask=torch.zeros(L))
    with pytest.raises(ValueError, match="boolean or floating"):
        ours(x, x, x, attn_mask=torch.zeros(L, L, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 dimensions"):
        ours(x[None], x[None], x[None])
    with pytest.raises(ValueError, match="two sequences"):
        ours(x, x, x[1:])
    nested = torch.nested.as_nested_tensor([x[0], x[1]], layout=torch.jagged)
    with pytest.raises(ValueError, match="nested"):
        ours(nested, nested, nested)


# -- cut by hand, recounted by the registry -----------------------------------------------------------------------


def use_of(kept: dict[str, dict[int, Any]]) -> Use:
    """The use of a module whose parameters keep these slots: the masks stand for their own vectors."""
    removal: Any = SimpleNamespace(kept=lambda mask: mask)
    return Use(removal, vectors={name: dict(dims) for name, dims in kept.items()})


def slots(
    original: nn.MultiheadAttention, heads: list[int], q: list[int], v: list[int], embed: list[int]
) -> dict[str, dict[int, Any]]:
    """Returns the kept slots of each parameter, if these heads, positions and embedding columns are kept."""

    def grid(positions: list[int]) -> Any:
        return np.outer(np.isin(range(H), heads), np.isin(range(D), positions)).ravel()

    e, rows_q, rows_v = np.isin(range(E), embed), grid(q), grid(v)
    rows = np.concatenate([rows_q, rows_q, rows_v])
    kept = {"in_proj_bias": {0: rows}, "bias_k": {2: rows_q}, "bias_v": {2: rows_v}}
    kept |= {"out_proj.weight": {0: e, 1: rows_v}, "out_proj.bias": {0: e}}
    if original.in_proj_weight is not None:
        kept["in_proj_weight"] = {0: rows, 1: e}
    else:
        kept |= {"q_proj_weight": {0: rows_q, 1: e}, "k_proj_weight": {0: rows_q}, "v_proj_weight": {0: rows_v}}
    return {name: dims for name, dims in kept.items() if name in dict(original.named_parameters())}


def cut(original: nn.MultiheadAttention, kept: dict[str, dict[int, Any]]) -> nn.MultiheadAttention:
    small = copy.deepcopy(original)
    for name, dims in kept.items():
        owner = small.out_proj if name.startswith("out_proj") else small
        value = small.get_parameter(name).detach()
        for dim, mask in dims.items():
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
        setattr(owner, name.removeprefix("out_proj."), nn.Parameter(value))
    recount(small, use_of(kept))
    return small


def removed(kept: dict[str, dict[int, Any]]) -> dict[str, dict[int, list[int]]]:
    return {n: {d: np.flatnonzero(~mask).tolist() for d, mask in dims.items()} for n, dims in kept.items()}


ALL_H, ALL_D, ALL_E = list(range(H)), list(range(D)), list(range(E))
CUTS = {
    "heads": ([0, 2], ALL_D, ALL_D, ALL_E),
    "one head": ([1], ALL_D, ALL_D, ALL_E),
    "positions": (ALL_H, [0, 1, 3], [0, 1, 3], ALL_E),
    "positions of q and k": (ALL_H, [1, 2], ALL_D, ALL_E),
    "positions of v": (ALL_H, ALL_D, [2], ALL_E),
    "heads and positions": ([1, 2], [0, 3], [1, 2, 3], ALL_E),
    "embedding": (ALL_H, ALL_D, ALL_D, [0, 1, 2, 5, 6, 7, 9, 11]),
    "all": ([0, 2], [1, 3], [0, 1, 2], [1, 4, 5, 6, 10]),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 7}])
def test_a_cut_layer_computes_what_the_masked_one_does(name: str, options: dict[str, Any]) -> None:
    options = {**options, "vdim": 7} if "kdim" in options else options
    heads, q, v, embed = CUTS[name]
    original = layer(batch_first=True, **options)
    kept = slots(original, heads, q, v, embed)
    small, reference = cut(original, kept), fxprune.masked(original, removed(kept))
    assert isinstance(small, MultiheadAttention)
    assert (small.num_heads, small.head_dim, small.v_head_dim) == (len(heads), len(q), len(v))
    assert small.scale == D**-0.5
    assert small.embed_dim == len(embed)
    for same in ("all", "key and value") if "kdim" not in options else ("key and value",):
        for args, kwargs in calls(same, True, options.get("kdim", E), options.get("vdim", E)):
            mask = kwargs["attn_mask"]
            fewer = dict(kwargs)
            if mask is not None and mask.dim() == 3:
                fewer["attn_mask"] = mask.unflatten(0, (-1, H))[:, heads].flatten(0, 1)
            narrower = {id(x): x[..., embed] if x.shape[-1] == E else x for x in args}
            output, weights = small(*[narrower[id(x)] for x in args], **fewer)
            blanked = {id(x): torch.zeros_like(x) for x in args}
            for x in args:
                blanked[id(x)] = x if x.shape[-1] != E else x * torch.isin(torch.arange(E), torch.tensor(embed))
            shared = [blanked[id(x)] for x in args]
            expected, _ = reference(*shared, **kwargs)
            assert relative_error(output, expected[..., embed]) < 1e-12
            if weights is not None:
                per_head = reference(*shared, **{**kwargs, "average_attn_weights": False})[1].index_select(
                    -3, torch.tensor(heads)
                )
                averaged = per_head.mean(-3) if kwargs["average_attn_weights"] else per_head
                assert relative_error(weights, averaged) < 1e-12


def test_a_layer_that_torch_can_express_keeps_its_class() -> None:
    original = layer()
    kept = slots(original, [0, 2], ALL_D, ALL_D, [0, 1, 2, 5, 6, 7, 9, 11])
    small = cut(original, kept)
    assert type(small) is nn.MultiheadAttention
    assert (small.embed_dim, small.kdim, small.vdim, small.num_heads) == (8, 8, 8, 2)
    x = torch.randn(L, N, 8, dtype=torch.float64)
    padded = torch.zeros(L, N, E, dtype=torch.float64)
    padded[..., [0, 1, 2, 5, 6, 7, 9, 11]] = x
    expected = fxprune.masked(original, removed(kept))(padded, padded, padded)[0]
    assert relative_error(small(x, x, x)[0], expected[..., [0, 1, 2, 5, 6, 7, 9, 11]]) < 1e-12
    assert type(cut(original, {})) is nn.MultiheadAttention


def test_it_can_be_cut_again_and_keeps_its_first_scale() -> None:
    original = layer(add_bias_kv=True)
    once = slots(original, [0, 2], [0, 1, 3], [0, 1, 3], ALL_E)
    small = cut(original, once)
    rows = np.tile([False, False, False, True, False, True], 3)  # the second head; of its positions 0, 1, 3 the outer
    twice = {"in_proj_weight": {0: rows}, "in_proj_bias": {0: rows}, "out_proj.weight": {1: rows[:6]}}
    again = cut(small, {**twice, "bias_k": {2: rows[:6]}, "bias_v": {2: rows[:6]}})
    assert isinstance(again, MultiheadAttention)
    assert (again.num_heads, again.head_dim, again.v_head_dim, again.scale) == (1, 2, 2, D**-0.5)
    reference = fxprune.masked(original, removed(slots(original, [2], [0, 3], [0, 3], ALL_E)))
    x = torch.randn(L, N, E, dtype=torch.float64)
    assert relative_error(again(x, x, x)[0], reference(x, x, x)[0]) < 1e-12


def test_heads_of_different_widths_are_refused() -> None:
    original = layer()
    rows = np.ones(3 * E, dtype=bool)
    rows[0] = False
    with pytest.raises(ValueError, match="heads would differ in width"):
        recount(original, use_of({"in_proj_weight": {0: rows}}))
    rows = np.ones(3 * E, dtype=bool)
    rows[:D] = False
    with pytest.raises(ValueError, match="heads would differ in width"):
        recount(original, use_of({"in_proj_weight": {0: rows}}))
    assert type(original) is nn.MultiheadAttention


# -- as part of something else --------------------------------------------------------------------------------------


def small_layer() -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    original = layer(batch_first=True)
    kept = slots(original, [0, 2], [0, 1, 3], [0, 1], ALL_E)
    return cut(original, kept), fxprune.masked(original, removed(kept))


class Residual(nn.Module):
    def __init__(self, attention_layer: nn.Module) -> None:
        super().__init__()
        self.attention = attention_layer

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        y, _ = self.attention(x, memory, memory, need_weights=False)
        return x + y + self.attention(x, x, x)[0]


def test_it_is_copied_pickled_and_loaded() -> None:
    small, _ = small_layer()
    x = torch.randn(N, L, E, dtype=torch.float64)
    expected = small(x, x, x)
    for clone in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(clone) is MultiheadAttention
        assert relative_error(clone(x, x, x), expected) == 0
    fresh = cut(layer(seed=5, batch_first=True), slots(small_original(), [0, 2], [0, 1, 3], [0, 1], ALL_E))
    assert relative_error(fresh(x, x, x), expected) > 1e-3
    fresh.load_state_dict(small.state_dict())
    assert relative_error(fresh(x, x, x), expected) == 0
    tensors = {name: torch.zeros_like(p) for name, p in small.named_parameters()}
    assert torch.func.functional_call(small, tensors, (x, x, x))[0].abs().max() == 0


def small_original() -> nn.MultiheadAttention:
    return layer(batch_first=True)


def test_names_hooks_and_mode_survive() -> None:
    original = layer().train()
    names, seen = list(dict(original.named_parameters())), []
    original.register_forward_hook(lambda *_: seen.append(1))
    small = narrow(original, num_heads=H, head_dim=D, v_head_dim=D, scale=1.0)
    x = torch.randn(L, N, E, dtype=torch.float64)
    small(x, x, x)
    assert small is original
    assert seen == [1]
    assert small.training
    assert list(dict(small.named_parameters())) == names


def test_it_is_traced_exported_and_compiled() -> None:
    small, reference = small_layer()
    net, x, memory = Residual(small), *(torch.randn(N, n, E, dtype=torch.float64) for n in (L, S))
    expected = Residual(reference)(x, memory)
    assert relative_error(net(x, memory), expected) < 1e-12

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, nn.MultiheadAttention)

    as_leaf = fx.GraphModule(net, Leaves().trace(net))
    assert len(as_leaf.graph.find_nodes(op="call_module")) == 2
    assert relative_error(as_leaf(x, memory), expected) < 1e-12
    through = fx.symbolic_trace(net)
    step = attention.multi_head_attention
    assert len(through.graph.find_nodes(op="call_function", target=step)) == 2
    assert relative_error(through(x, memory), expected) < 1e-12
    assert relative_error(torch.export.export(net, (x, memory)).module()(x, memory), expected) < 1e-12
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert relative_error(compiled(x, memory), expected) < 1e-12


def test_gradients_reach_every_parameter() -> None:
    small, _ = small_layer()
    x = torch.randn(N, L, E, dtype=torch.float64)
    small(x, x, x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_around_it_takes_no_fused_path(norm_first: bool) -> None:
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(E, 2, 8, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    net = randomise(nn.TransformerEncoder(one, 2, enable_nested_tensor=not norm_first), 0).eval()
    assert net.use_nested_tensor != norm_first
    small, gone = copy.deepcopy(net), {}
    rows = np.tile(np.arange(6) < 4, 2)
    kept = {"in_proj_weight": {0: np.tile(rows, 3)}, "in_proj_bias": {0: np.tile(rows, 3)}}
    kept["out_proj.weight"] = {1: rows}
    for k in range(1, 2):  # the second layer only: the encoder asks the first one for its paths
        small.layers[k].self_attn = cut(small.layers[k].self_attn, kept)
        gone |= {f"layers.{k}.self_attn.{n}": dims for n, dims in removed(kept).items()}
    for module in reversed(list(small.modules())):
        if not isinstance(module, nn.MultiheadAttention):
            recount(module, use_of({}))
    reference = fxprune.masked(net, gone)
    x, padding = torch.randn(N, L, E, dtype=torch.float64), torch.zeros(N, L, dtype=torch.bool)
    padding[0, 3:], padding[2, 4:] = True, True
    with torch.no_grad():
        assert relative_error(small(x), reference(x)) < 1e-12
        ours = small(x, src_key_padding_mask=padding)[~padding]
        assert relative_error(ours, reference(x, src_key_padding_mask=padding)[~padding]) < 1e-12


# -- through the whole pass -----------------------------------------------------------------------------------------


class Block(nn.Module):
    """Linear layers around attention in a residual block."""

    def __init__(self, cross: bool = False, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.first, self.memory = nn.Linear(6, E), nn.Linear(7, options.get("kdim", E))
        self.attention = nn.MultiheadAttention(E, H, batch_first=True, **options)
        self.hidden, self.last = nn.Linear(E, 10), nn.Linear(10, 5)
        self.cross, self.need_weights = cross, need_weights

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x, memory = self.first(x), self.memory(memory)
        key = memory if self.cross else x
        y, _ = self.attention(x, key, key, need_weights=self.need_weights)
        return self.last(torch.relu(self.hidden(x + y)))


WHOLE = {
    "self": {},
    "self with weights": {"need_weights": True},
    "cross": {"cross": True},
    "cross, other widths": {"cross": True, "kdim": 9, "vdim": 9},
    "no bias": {"bias": False},
    "appended": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_a_block_is_pruned_whole(name: str, ratio: float) -> None:
    torch.manual_seed(0)
    net = randomise(Block(**WHOLE[name]).double().eval(), 0, weights=True)
    inputs = (torch.randn(N, L, 6, dtype=torch.float64), torch.randn(N, S, 7, dtype=torch.float64))
    small = fxprune.transform(net, inputs, ratio=ratio, strict=True)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert small.attention.out_proj.weight.shape[1] < E
    assert relative_error(small(*inputs), reference(*inputs)) < 1e-9
    once_more = fxprune.transform(small, inputs, ratio=0.3)
    assert once_more.attention.out_proj.weight.numel() < small.attention.out_proj.weight.numel()


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, E)
        one = nn.TransformerEncoderLayer(E, H, 20, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        self.last = nn.Linear(E, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.embedding(tokens)).mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.memory = nn.Embedding(11, E), nn.Linear(7, E)
        self.decoder = nn.TransformerDecoderLayer(E, H, 20, batch_first=True)
        self.last = nn.Linear(E, 5)

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.last(self.decoder(self.embedding(tokens), self.memory(memory)))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(11, E), nn.Embedding(13, E)
        self.both = nn.Transformer(E, H, 1, 1, 20, batch_first=True)
        self.last = nn.Linear(E, 5)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.last(self.both(self.source(source), self.target(target)))


TOKENS = torch.arange(N * L).reshape(N, L) * 3 % 11
TRANSFORMERS = {
    "encoder": (lambda: Encoder(False), (TOKENS,)),
    "encoder, norm first": (lambda: Encoder(True), (TOKENS,)),
    "decoder": (Decoder, (TOKENS, torch.randn(N, S, 7, generator=torch.Generator().manual_seed(0)).double())),
    "transformer": (Both, (TOKENS, TOKENS + 1)),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_pruned_whole(name: str) -> None:
    make, inputs = TRANSFORMERS[name]
    torch.manual_seed(0)
    net = randomise(make().double().eval(), 0, weights=True)
    small = fxprune.transform(net, inputs, ratio=0.5)
    assert fxprune.record(small).error is not None
    assert fxprune.record(small).error <= 1e-9
    attentions = [m for m in small.modules() if isinstance(m, nn.MultiheadAttention)]
    assert attentions
    assert all(m.out_proj.weight.shape[1] <= E // 2 + D for m in attentions)
    wide = [m.linear1.weight.shape[0] for m in small.modules() if hasattr(m, "linear1")]
    assert wide
    assert all(width == 10 for width in wide)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_keep_their_embedding_and_are_exact(name: str) -> None:
    """Without gradients: torch takes the fused kernels wherever it thinks it may."""
    make, inputs = TRANSFORMERS[name]
    torch.manual_seed(0)
    net = randomise(make().double().eval(), 0, weights=True)
    small = fxprune.transform(net, inputs, ratio=0.5, exact=True)
    assert any(isinstance(m, MultiheadAttention) for m in small.modules())
    with torch.no_grad():
        assert relative_error(small(*inputs), fxprune.masked(net, fxprune.record(small).removed)(*inputs)) < 1e-9


class Padded(nn.Module):
    """An encoder that would turn its input into a nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, E)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 2, 20, batch_first=True), 2)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        y = self.encoder(self.first(x), src_key_padding_mask=padding)
        return y.masked_fill(padding.unsqueeze(-1), 0.0).sum(1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("ignore", [(), ("encoder.layers.0.self_attn",)])
def test_no_nested_tensor_meets_narrow_heads(ignore: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    net = randomise(Padded().double().eval(), 0, weights=True)
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[0, 3:], padding[2, 4:] = True, True
    inputs = (torch.randn(N, L, 6, dtype=torch.float64), padding)
    small = fxprune.transform(net, inputs, ratio=0.5, exact=True, ignore=ignore)
    assert isinstance(small.get_submodule("encoder.layers.1.self_attn"), MultiheadAttention)
    assert net.encoder.use_nested_tensor
    with torch.no_grad():
        assert relative_error(small(*inputs), fxprune.masked(net, fxprune.record(small).removed)(*inputs)) < 1e-9


class LearnedQueries(nn.Module):
    """The first self-attention of a decoder: queries and keys are parameters for every sample, values are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.attention, self.head = nn.Embedding(L, E), layer(batch_first=True), nn.Linear(E, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.queries.weight[None].expand(len(x), -1, -1)
        made, _ = self.attention(queries, queries, torch.zeros_like(queries), need_weights=False)
        return self.head(made) + x


def test_heads_of_expanded_queries_are_exact() -> None:
    net, x = LearnedQueries().double().eval(), torch.randn(N, L, 2, dtype=torch.float64)
    groups = [group for group in fxprune.analyze(net, x).groups if group.kind != "channels"]
    assert [len(group) for group in groups] == [H, D, D]
    assert all(group.exact for group in groups)
    small = fxprune.transform(net, x, ratio=0.5, exact=True)
    assert fxprune.record(small).exact
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-9
