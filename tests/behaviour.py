"""The comparison of the behaviour of a small model and of the model it was made from: `compare_behaviour`.

What a model computes is compared with the masked original, and everything else with the original. Nothing here uses the
package's own proof.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import pickle
import random
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.capture.held_objects import parts_held_by
from fxprune.capture.references import closed_over
from fxprune.capture.weak_references import is_weak, referents_of
from tests.support import call

TOLERANCE = 1e-9
GRADIENTS = 1e-7
"""The same for gradients, relative to the largest one of the parameter, or to a thousandth of the largest of all: the
bias in front of a batch norm has no gradient but rounding."""

GRAPH = frozenset({"type", "methods", "attributes", "the type of the result"})
GIVEN_UP: Mapping[str, frozenset[str]] = {
    "eager": frozenset(),
    "fx": GRAPH | {"pickle"},
    "export": GRAPH | {"hooks", "modes", "state_dict", "pickle", "training", "another batch", "another size"},
    "hooks": frozenset({"hooks", "state_dict"}),
}
"""Name of a path -> the names of what its results do not keep by their nature.

An exported graph has one mode, containers without hooks, and may have the sizes of the example written in. On the path
"hooks" layers carry hooks and positions of their own. Torch cannot save a graph whose forward has annotations as text.
"""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A model and the small model made from it.

    reference: the original with every removed slot of every parameter and buffer set to zero.
    training: the inputs of the calls in training mode.
    methods: path and name of another method than forward -> the inputs of its calls.
    without: the names of what is not compared.
    """

    model: nn.Module
    small: nn.Module
    reference: nn.Module
    inputs: Any
    training: Any
    methods: Mapping[str, Any]
    without: Collection[str]


def compare_behaviour(
    model: nn.Module,
    small: nn.Module,
    inputs: Any,
    *,
    training: Any = None,
    methods: Mapping[str, Any] = MappingProxyType({}),
    without: Collection[str] = (),
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[str]:
    """The differences in behaviour between a model and the small one made from it, as sentences.

    Each begins with the name of what differs: a check of `CHECKS`, a call of `CALLS`, the name of a method, or one of
    "training", "gradients", "buffers", "random", "the type of the result".

    Args:
        model: the original, in float64, pruned so that its small model is exact.
        small: the result of `transform`.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        training: the inputs of calls in training mode, if they are others.
        methods: the methods that `transform` was given, with inputs of theirs.
        without: the names of what is not compared; see `GIVEN_UP`.
        around: makes a context in which all models are called.
    """
    reference = fxprune.masked(model, fxprune.record(small).removed)
    in_training = inputs if training is None else training
    compared = Compared(model, small, reference, inputs, in_training, methods, without)
    found: list[str] = []
    with around():
        for name, check in CHECKS.items():
            if name not in without:
                found += [f"{name}: {sentence}" for sentence in check(compared)]
        for check in (evaluation, other_methods, training_step):
            found += check(compared)
    return found


# -- what the model is ------------------------------------------------------------------------------------


def _type(c: Compared) -> Iterator[str]:
    if type(c.small) is not type(c.model):
        yield f"{type(c.small).__name__} instead of {type(c.model).__name__}"


def _methods(c: Compared) -> Iterator[str]:
    names = [name for name in dir(type(c.model)) if not name.startswith("_") and callable(getattr(c.model, name, None))]
    missing = [name for name in names if not callable(getattr(c.small, name, None))]
    if missing:
        yield f"{', '.join(missing)} missing"


def _attributes(c: Compared) -> Iterator[str]:
    small = dict(c.small.named_modules())
    for path, module in c.model.named_modules():
        have = vars(small[path]) if path in small else {}
        missing = [name for name in vars(module) if not name.startswith("_") and name not in have]
        if missing:
            yield f"{', '.join(missing)} missing in {path or 'the model'}"


def _hooks(c: Compared) -> Iterator[str]:
    small = dict(c.small.named_modules())
    for path, module in c.model.named_modules():
        have, want = (_hooks_of(m) if m is not None else {} for m in (small.get(path), module))
        if have != want and (path in small or want):
            yield f"{have} instead of {want} in {path or 'the model'}"


def _hooks_of(module: nn.Module) -> dict[str, int]:
    """Kind of hook -> how many of them a module and its own parameters have."""
    counts = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict) and v}
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter._backward_hooks:
            counts[name] = len(parameter._backward_hooks)
    return counts


def _fake_tensors(c: Compared) -> Iterator[str]:
    for name, model in (("the original", c.model), ("the small model", c.small)):
        found = [tensor for tensor in _reached(model) if isinstance(tensor, FakeTensor)]
        if found:
            yield f"{len(found)} fake tensors in {name}, of shape {tuple(found[0].shape)} and others"


def _reached(model: nn.Module) -> Iterator[Any]:
    """Everything a model holds or refers to: also weakly, and in closures, globals and classes that its code names."""
    kinds = {
        kind for module in model.modules() for kind in type(module).__mro__ if not kind.__module__.startswith("torch")
    }
    own = [value for kind in kinds for value in vars(kind).values()]
    waiting, seen = [model, *own], dict[int, Any]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            yield one
            waiting += referents_of(one) if is_weak(one) else parts_held_by(one)
            if isinstance(one, types.FunctionType) and not str(one.__module__).startswith(("torch", "fxprune")):
                waiting += closed_over(one).values()


def _modes(c: Compared) -> Iterator[str]:
    have, want = ({path: m.training for path, m in model.named_modules()} for model in (c.small, c.model))
    other = [path or "the model" for path, mode in want.items() if have.get(path, mode) != mode]
    if other:
        yield f"{', '.join(other)} in the other mode"


def _state_dict(c: Compared) -> Iterator[str]:
    have, want = list(c.small.state_dict()), list(c.model.state_dict())
    if have != want:
        yield f"missing {sorted(set(want) - set(have))}, more {sorted(set(have) - set(want))}, or another order"
    flags = {name: p.requires_grad for name, p in c.small.named_parameters()}
    other = [name for name, p in c.model.named_parameters() if flags.get(name, p.requires_grad) != p.requires_grad]
    if other:
        yield f"requires_grad of {', '.join(other)}"


def _deepcopy(c: Compared) -> Iterator[str]:
    yield from _same_copy(c, copy.deepcopy(c.small))


def _pickle(c: Compared) -> Iterator[str]:
    """A model that was saved and loaded, if the original can be."""
    if isinstance(_saved(c.model), Exception):
        return
    loaded = _saved(c.small)
    if isinstance(loaded, Exception):
        yield f"{type(loaded).__name__}: {loaded}"
    else:
        yield from _same_copy(c, loaded)


def _saved(model: nn.Module) -> Any:
    """The model after `torch.save` and `torch.load`, or the error that they raise."""
    file = io.BytesIO()
    try:
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        return error


def _same_copy(c: Compared, other: nn.Module) -> Iterator[str]:
    """The differences of a copy of the small model; one of a graph has a class of its own, by the same name or not."""
    graphs = isinstance(other, fx.GraphModule) and isinstance(c.small, fx.GraphModule)
    if type(other) is not type(c.small) and not graphs:
        yield f"{type(other).__name__} instead of {type(c.small).__name__}"
    ours, theirs = (outcomes(model, [c.inputs])[0] for model in (other, copy.deepcopy(c.reference)))
    yield from differences(ours, theirs)


CHECKS: Mapping[str, Callable[[Compared], Iterator[str]]] = {
    "type": _type,
    "methods": _methods,
    "attributes": _attributes,
    "hooks": _hooks,
    "modes": _modes,
    "fake tensors": _fake_tensors,
    "state_dict": _state_dict,
    "deepcopy": _deepcopy,
    "pickle": _pickle,
}


# -- what it computes -------------------------------------------------------------------------------------

CALLS = ("first call", "second call", "another batch", "another size")


def evaluation(c: Compared) -> Iterator[str]:
    """One copy of each model is called several times in evaluation mode, the last times on inputs of other sizes."""
    given = dict(zip(CALLS, (c.inputs, c.inputs, another_batch(c.inputs), another_size(c.inputs)), strict=True))
    given = {name: inputs for name, inputs in given.items() if name not in c.without}
    ours, theirs = (outcomes(model.eval(), list(given.values())) for model in _copies(c))
    for name, one, other in zip(given, ours, theirs, strict=True):
        yield from _sentences(c, f"{name} in evaluation mode", one, other)
    yield from _random(c, training=False)


def other_methods(c: Compared) -> Iterator[str]:
    """Each method is called on copies of its own, in both modes."""
    for training in (False, True):
        for name, inputs in c.methods.items():
            ours, theirs = (_result_of(model.train(training), name, inputs) for model in _copies(c))
            yield from _sentences(c, f"{name} in {'training' if training else 'evaluation'} mode", ours, theirs)


def _result_of(model: nn.Module, name: str, inputs: Any) -> Any:
    """The result of a method, or the error that it raises. Random numbers are constants."""
    path, _, leaf = name.rpartition(".")
    method = getattr(model.get_submodule(path), leaf)
    with torch.no_grad(), fixed_numbers():
        return outcome(method, inputs)


def training_step(c: Compared) -> Iterator[str]:
    """One copy of each model is called twice in training mode; the first time with gradients."""
    if "training" in c.without:
        return
    ours, theirs = (_step(model.train(), c.training) for model in _copies(c))
    yield from _sentences(c, "training: first call", ours.results[0], theirs.results[0])
    yield from _sentences(c, "training: second call", ours.results[1], theirs.results[1])
    removed, factors = fxprune.record(c.small).removed, factors_of(c.small)
    if "gradients" not in c.without:
        largest = max((float(g.abs().max()) for g in theirs.gradients.values() if g.numel()), default=0.0)
        for name, gradient in theirs.gradients.items():
            have = ours.gradients.get(name)
            want = kept(divided(gradient, factors.get(name, ())), removed.get(name, {}))
            floor = max(float(want.abs().max()) if want.numel() else 0.0, 1e-3 * largest)
            if have is None or have.shape != want.shape:
                yield f"gradients: {name} has {'none' if have is None else f'the shape {tuple(have.shape)}'}"
            elif not float((have - want).abs().max()) <= GRADIENTS * floor:
                yield f"gradients: {name} differs by {float((have - want).abs().max()) / floor:.1e}"
        more = sorted(set(ours.gradients) - set(theirs.gradients))
        if more:
            yield f"gradients: {', '.join(more)} should have none"
    if "buffers" not in c.without:
        for name, want in theirs.buffers.items():
            have = ours.buffers.get(name)
            if have is not None:
                for sentence in differences(have, kept(want, removed.get(name, {}))):
                    yield f"buffers: {name} after the step: {sentence}"
    yield from _random(c, training=True)


@dataclasses.dataclass(frozen=True)
class Step:
    """The results of two calls in training mode, and what the first one gave and changed."""

    results: Sequence[Any]
    gradients: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]


def _step(model: nn.Module, inputs: Any) -> Step:
    results: list[Any] = []
    gradients: dict[str, torch.Tensor] = {}
    for number in range(2):
        with fixed_numbers():
            result = outcome(model, inputs)
            if not number and not isinstance(result, Exception):
                loss = sum((_weighted(t) for t in tensors_of(result).values() if t.requires_grad), torch.zeros(()))
                if loss.requires_grad:
                    loss.backward()
        results.append(pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result))
        if not number:
            named = [(name, p.grad) for name, p in model.named_parameters(remove_duplicate=False)]
            gradients = {name: grad.clone() for name, grad in named if grad is not None}
    return Step(results, gradients, {name: b.detach().clone() for name, b in model.named_buffers()})


def _weighted(tensor: torch.Tensor) -> torch.Tensor:
    """A sum of all numbers with weights that differ, so that no sum hides an exchange."""
    weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64).view(tensor.shape)
    return (tensor.real * weights.to(tensor.real.dtype)).sum()


def _random(c: Compared, *, training: bool) -> Iterator[str]:
    """The difference if two calls draw other random numbers in one of the models only."""
    inputs = c.training if training else c.inputs
    if "random" in c.without:
        return
    varies = [_varies(model.train(training), inputs, seeds=2) for model in _copies(c)]
    if varies[0] != varies[1]:  # two calls may have dropped the same by chance
        varies = [_varies(model.train(training), inputs, seeds=12) for model in _copies(c)]
    if varies[0] != varies[1]:
        mode = "training" if training else "evaluation"
        yield f"random: calls {'differ' if varies[0] else 'are the same'} in {mode} mode, those of the original do not"


def _varies(model: nn.Module, inputs: Any, seeds: int) -> bool:
    """True if calls with other random numbers have other results."""
    results = []
    for seed in range(1, seeds + 1):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            results.append(outcome(copy.deepcopy(model), inputs))
    return any(True for result in results[1:] for _ in differences(result, results[0]))


def _copies(c: Compared) -> Iterator[nn.Module]:
    """A fresh copy of the small model, then one of the reference."""
    yield copy.deepcopy(c.small)
    yield copy.deepcopy(c.reference)


def _sentences(c: Compared, name: str, ours: Any, theirs: Any) -> Iterator[str]:
    if "the type of the result" not in c.without and type(ours) is not type(theirs):
        yield f"the type of the result: {name}: {_told(ours)} instead of {_told(theirs)}"
    yield from (f"{name}: {sentence}" for sentence in differences(ours, theirs))


def outcomes(model: nn.Module, given: Sequence[Any]) -> list[Any]:
    """The results of calls in turn, or the errors that they raise. Random numbers are constants."""
    with torch.no_grad(), fixed_numbers():
        return [outcome(model, inputs) for inputs in given]


def outcome(model: Callable[..., Any], inputs: Any) -> Any:
    """The result of a call, or the error that it raises. A warning is none: torch gives some of them only once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(model, pytree.tree_map_only(torch.Tensor, torch.clone, inputs))
        except Exception as error:
            return error


def differences(ours: Any, theirs: Any) -> Iterator[str]:
    """The difference of two results; two errors of one type are equal."""
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        if type(ours) is not type(theirs):
            yield f"{_told(ours)} instead of {_told(theirs)}"
        return
    have, want = tensors_of(ours), tensors_of(theirs)
    if have.keys() != want.keys():
        yield f"tensors at {sorted(have)} instead of {sorted(want)}"
    for place in have.keys() & want.keys():
        a, b = have[place].detach(), want[place].detach()
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield f"{a.dtype} {tuple(a.shape)} instead of {b.dtype} {tuple(b.shape)}{place and f' at {place}'}"
        elif not (error := error_of(a, b)) <= TOLERANCE:
            yield f"differs by {error:.1e}{place and f' at {place}'}"


def _told(result: Any) -> str:
    if isinstance(result, Exception):
        text = " ".join(str(result).split())
        return f"{type(result).__name__}: {text[:120]}"
    return f"a result ({type(result).__name__})"


def error_of(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |ours - theirs| / max |theirs|. Equal infinities, and NaN at equal places, are equal."""
    if not theirs.numel():
        return 0.0
    a, b = ours.to(torch.complex128), theirs.to(torch.complex128)
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    finite = b.abs()[b.isfinite()]
    scale = float(finite.max()) if finite.numel() else 1.0
    error = float((a - b).abs()[~same].max()) / (scale or 1.0)
    return error if np.isfinite(error) else float("inf")


def tensors_of(value: Any, place: str = "") -> dict[str, torch.Tensor]:
    """Place -> tensor, in tuples, lists, mappings and data classes; other objects are state, not results."""
    if isinstance(value, torch.Tensor):
        return {place: value}
    if isinstance(value, Mapping):
        parts = [(f"{place}.{key}", part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{place}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
    else:
        return {}
    return {at: tensor for where, part in parts for at, tensor in tensors_of(part, where).items()}


# -- inputs, slots and random numbers ---------------------------------------------------------------------


def another_batch(inputs: Any) -> Any:
    """The inputs with twice as many examples, where dimension 0 has the size of that of the first tensor."""
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.ndim]
    batch = tensors[0].shape[0]

    def larger(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor.flip(0)]) if tensor.ndim and tensor.shape[0] == batch else tensor

    return pytree.tree_map_only(torch.Tensor, larger, inputs)


def another_size(inputs: Any) -> Any:
    """The inputs with larger images, or longer sequences: all but the batch and the channels are repeated."""

    def larger(tensor: torch.Tensor) -> torch.Tensor:
        dims = range(2, tensor.ndim) if tensor.ndim > 3 else (1,) if tensor.ndim > 1 else ()
        for dim in dims:
            tensor = torch.cat([tensor, tensor.flip(dim)], dim)
        return tensor

    return pytree.tree_map_only(torch.Tensor, larger, inputs)


def kept(tensor: torch.Tensor, removed: Mapping[int, Sequence[int]]) -> torch.Tensor:
    """The slots of a tensor of the original that the small model has."""
    for dim, slots in removed.items():
        index = sorted(set(range(tensor.shape[dim])) - set(slots))
        tensor = tensor.index_select(dim, torch.tensor(index, dtype=torch.int64))
    return tensor


def factors_of(small: nn.Module) -> Mapping[str, Sequence[Any]]:
    """Parameter -> the factors of the plan for it."""
    found: dict[str, list[Any]] = {}
    for factor in getattr(fxprune.record(small).plan, "factors", ()):
        found.setdefault(factor.tensor, []).append(factor)
    return found


def divided(gradient: torch.Tensor, factors: Sequence[Any]) -> torch.Tensor:
    """The gradient for a weight that is larger by these factors."""
    for factor in factors:
        every = range(gradient.shape[factor.dim])
        scale = torch.ones(len(every), dtype=gradient.dtype)
        scale[list(every if factor.slots is None else factor.slots)] = 1 / factor.factor
        gradient = gradient * scale.view([-1 if d == factor.dim else 1 for d in range(gradient.ndim)])
    return gradient


class _Constants(TorchDispatchMode):
    """Makes every random number a constant. Nothing is dropped, but dropout scales what it keeps."""

    VALUES: Mapping[str, float] = {
        **dict.fromkeys(("bernoulli", "bernoulli_", "exponential", "exponential_"), 1.0),
        **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_"), 0.75),
        **dict.fromkeys(("randn", "randn_like", "normal", "normal_"), 0.5),
    }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        made = func(*args, **(kwargs or {}))
        if name in self.VALUES:
            made.fill_(self.VALUES[name])
        elif name == "native_dropout":
            made = (args[0] / (1 - args[1]), torch.ones_like(made[1]))
        return made


@contextlib.contextmanager
def fixed_numbers() -> Iterator[None]:
    """Random numbers of torch are constants inside, and those of Python and numpy the same each time."""
    before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]), _Constants():
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
