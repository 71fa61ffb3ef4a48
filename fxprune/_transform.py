"""`transform`: the pass as its user calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn
from torch.export import ExportedProgram

from fxprune._attempt import Request
from fxprune._carry_out import carry_out
from fxprune._data_options import DataOptions
from fxprune._find import AnalyzeArguments
from fxprune.arguments import checks_arguments
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.criteria import Importance
from fxprune.files import PathLike
from fxprune.planning.plan import Plan

ModelT = TypeVar("ModelT", bound=nn.Module | ExportedProgram)


@checks_arguments("also", "methods", "exact", "strict", "verify", "repair_mode", "latency_table")
@public_call_on_model
def transform(
    model: ModelT,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    bias: str | None = None,
    border: str = "carrier",
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int | str = 1,
    exact: bool = False,
    seed: int | None = None,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
    strict: bool = False,
    verify: bool = True,
    path: str | None = None,
    prefer: str | None = None,
    norms: str | None = None,
    outputs: Any = None,
    keep: Mapping[str, Any] | None = None,
    scope: str = "local",
    counts: Mapping[Any, int] | None = None,
    uniform: Any = (),
    min_channels: int = 1,
    max_ratio: float | None = None,
    latency_table: PathLike | bool | None = None,
    drop: Any = (),
    depth: bool = False,
    data: Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    scores: Any = None,
    repair: Iterable[Any] | bool | None = None,
    repair_mode: str = "weights",
    repair_inputs: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    ema: Any = None,
    search: Mapping[str, Any] | None = None,
    process_group: Any = None,
) -> ModelT:
    """A smaller model, which computes what the original would compute if the removed channels had never existed.

    The original is not changed. The result has the same parameter names, dtypes, devices, `requires_grad` flags and
    train/eval modes; shared parameters stay shared. There are four paths, tried in this order:

    - "eager": the result has the model's own class, with smaller parameters and recounted attributes;
    - "fx": the result is a `torch.fx.GraphModule`, made by symbolic tracing;
    - "export": the result is a `GraphModule` of ATen operations, made by `torch.export`;
    - "hooks": the result has the model's own class. Forward hooks fill up the outputs of smaller layers with zeros.

    A `GraphModule` comes back as a `GraphModule`, a program of `torch.export` as a program with the same open sizes.
    Any other model comes back as its own class, if that can be proven right. Channels that its forward cannot run
    without are kept, and `record(small).reasons` names them. If the class would lose less than nine tenths of the
    parameters that a graph would lose, the result is a graph, and a `ClassLostWarning` says why; or a
    `ChannelsStayWarning` says what that graph would not keep of the model, such as its state or its other mode, if it
    is not taken therefore. `record(small).path` names the path, and `record(small).why_not` says why the paths before
    it were not taken.

    Args:
        model: any module, a traced `torch.fx.GraphModule`, or a `torch.export.ExportedProgram`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: the channels to remove, made by `analysis.plan(...)` or loaded from a file. The path that it was made on
            is tried first. Without a plan, the next arguments say how to make one:
        keep: the cost that stays, such as {"macs": 0.5}: the result is within it, and near it.
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.choose.choose`.
        scope, counts, uniform, min_channels, max_ratio, latency_table: see there too, where more is said of `keep`.
            With uniform="config" only what the config of a Hugging Face model can say is removed, and that of the
            result says it, so that `from_pretrained` loads it (see docs/transformers.md); `plan` may be given with it.
        bias: "prune" removes everything that belongs to a channel. "fold" removes its weights only. What the channel
            computes without them is a constant (from its bias, the shift of a norm, an activation at zero), which is
            folded exactly into the layers that read it. If that is not possible, the channel stays. The default is
            "fold" for masks="zeros", else "prune". masks="zeros" with "fold" removes all channels that are constant for
            every input or have no influence, so that the result computes the same function as the original.
        border: how to fold a constant into a layer that pads with zeros, where its effect is different near the border.
            "carrier" keeps one of the constant channels, and folds the others into it. "map" adds a map of constants to
            the result of the layer. The map has out_channels x height x width numbers, works only for inputs of the
            example's height and width, and needs a graph.
        also: a list of further example inputs, for a forward that runs other code on them. Channels that are locked or
            tied on one of the inputs are so in the result.
        methods: name of another method -> the example inputs of one call of it, given as `example_inputs`: {"encode":
            x, "decoder.step": (x, 3)}. These methods are analysed, cut and compared like forward; what they return
            keeps its shape. Each runs on a copy of its own, on which nothing ran before. Only a result that keeps its
            class has methods, so no graph is made then.
        strict: raise `RuleError` at an operation without a rule, instead of keeping the channels that enter it.
        verify: compare the result with its reference in float64, if the weights have values (see `fxprune.proof`).
            Shapes are always proven. A forward that depends on the numbers in its tensors is always compared, because
            its shapes cannot be proven.
        path: the name of the only path to try.
        prefer: "class" keeps the model's class wherever that is possible, whatever it costs. "graph" gives a graph.
        norms: "kept" takes statistics over the kept channels. "preserve" makes statistics count the original width
            wherever that is exactly possible: layer norms, RMS norms, and means over values that are zero at removed
            channels. The result then equals the masked original there, and such groups are exact. By default those of
            the plan, and "kept" without one. Others than those of the plan are taken, and `record(small).reasons` says
            so.
        outputs: the parts of the forward's result that count. A part is given by its path: the number of an element
            (`0`), the key of a dict or the name of a field (`"boxes"`), or a tuple of such keys (`("features", 0)`); a
            list has several paths. Only these parts keep their shape and are compared. The others may lose channels:
            the record names them, with their new shapes. By default all parts count. A plan says which ones count for
            it; `outputs` may then name some of these.
        drop: a pattern or several that name residual branches, which go whole: f(x) in x + f(x). A branch has the name
            of its layer or of the block around its layers, such as "layer3.1" or "encoder.layer.4.attention"; a block
            names all branches in it. What keep, ratio and the other options ask for is then asked of the rest; a budget
            counts from the original. See docs/depth.md.
        depth: True to let residual branches go where a budget is met better so: small models without some are made,
            repaired and measured, and the best one says which go. Needs `keep`, and `repair` or `data`.
        data: batches for an importance that is measured, such as "taylor", and for `repair=True`: in the form of the
            example inputs, or tuples of these and labels.
        loss: a function from the model and a batch of the data to a scalar, for an importance that needs gradients:
            `lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])`.
        scores: instead of an importance, scores that `analysis.scores` has measured, or the name of their file.
        repair: batches of inputs, some hundred samples without labels, on which the result is repaired after its proof:
            its layers compute again what they computed in the original. True takes those of `data`. See
            `fxprune.repair`, which has more options.
        repair_mode, repair_inputs: `mode` and `inputs` of `fxprune.repair`. The latter is for `data` too, unless
            `repair` gives others.
        optimizer, ema: an optimizer of the model, and an averaged model of it, or lists of them. They are changed in
            place, last of all, and go on with the result: see `fxprune.follow`.
        search: the settings of scope="search": "steps", the number of small models to measure; "file", a JSON file from
            which a run that was killed goes on; "progress", False for no bar; "score", a function from a model to a
            number of which more is better. See docs/searching.md.
        process_group: a group of `torch.distributed`, whose processes have the same model, and some of the batches of
            `data` and `repair` each. All of them get the model that one process gets from all batches; if one raises,
            or if their plans differ, all raise.

    Raises a subclass of `FxpruneError`, which says what to do. Warns with `NothingRemovedWarning`, which says why, if
    nothing could be removed; with `BudgetMissedWarning` if the result costs more than `keep`; with `NotProvenWarning`
    if the result could not be compared with its reference, or nothing that depends on what was removed was compared;
    with `FixedSizesWarning` if the result is an exported graph that takes fewer sizes of inputs than the original; with
    `ChannelsStayWarning` if a graph that does not do all that the model does would lose clearly more.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3))
    >>> small = fxprune.transform(net.eval(), torch.randn(1, 3, 8, 8), ratio=0.5)
    >>> small.get_submodule("0"), small.get_submodule("1").num_features
    (Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), 4)
    """
    call = AnalyzeArguments(model, example_inputs, also, methods, strict, path, prefer, norms, outputs)
    choices: dict[str, Any] = {"ratio": ratio, "masks": masks, "bias": bias, "border": border, "ignore": ignore}
    choices |= {"importance": importance, "round_to": round_to, "exact": exact, "seed": seed, "keep": keep}
    choices |= {"scope": scope, "counts": counts, "min_channels": min_channels, "max_ratio": max_ratio}
    choices |= {"uniform": uniform, "latency_table": latency_table, "drop": drop, "depth": depth}
    on = DataOptions(data, loss, scores, repair, repair_mode, repair_inputs, optimizer, ema, search, process_group)
    return cast(ModelT, carry_out(Request(call, plan, choices, verify), on))
