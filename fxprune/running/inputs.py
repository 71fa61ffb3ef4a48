"""The data that a model is run on: batches, as the arguments of its calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import Inputs, bound, normalize
from fxprune.errors import FxpruneError, InputError, text_of
from fxprune.progress import bar


def inputs_of(
    model: nn.Module, batches: Any, pick: Callable[[Any], Any] | None, *, option: str = "repair_inputs"
) -> list[Inputs]:
    """The arguments of the model in each batch. An iterator that can be read once only is read here, as any other.

    pick: a function that gives the inputs among what a batch holds, such as `lambda batch: batch[0]`; None if a batch
    holds nothing else. option: the name of the argument that takes this function, for the error; "" if none does.

    Raises `InputError` for what gives no batches, and for batches that do not fit the model.
    """
    _check_iterable(batches)
    found = []
    for number, batch in enumerate(_read(batches)):
        given = batch if pick is None else _picked(pick, batch, number, option)
        try:
            inputs = normalize(given)
            bound(model, inputs, "inputs in the batch")
        except InputError as error:
            raise InputError(
                "a batch does not fit the model",
                at=f"batch {number}",
                why=": ".join(filter(None, (error.what, error.why))),
                do=_as_one_batch(model, batches) or _how_to_fit(option, picks=pick is not None),
            ) from None
        found.append(inputs)
    if not found:
        raise InputError("there is no batch", why="the iterable is empty", do="pass at least one batch")
    return found


def _how_to_fit(option: str, *, picks: bool) -> str:
    """Advice for a batch that does not fit. picks: True if a function has picked the inputs out of it."""
    if not option:
        return "let a batch hold what one call takes"
    by_hand = f"`{option}=lambda batch: batch[0]`"
    if picks:
        do = (
            "let a batch begin with what one call takes, in the order of forward's arguments, or hold it by their names"
        )
        return f"{do}; or pass a function that picks it out, such as {by_hand}"
    return f"let a batch hold what one call takes, or pick it out: {by_hand}"


def _as_one_batch(model: nn.Module, batches: Any) -> str:
    """Advice where what was given as batches is one call of the model: `(pts, cell)`; "" where it is not."""
    if not isinstance(batches, (tuple, list)) or len(batches) < 2:
        return ""
    try:
        names = list(bound(model, normalize(tuple(batches))).arguments)
    except InputError:
        return ""
    return f"one call of the model takes all of it, so that it is one batch: pass `[({', '.join(names)})]`"


def _picked(pick: Callable[[Any], Any], batch: Any, number: int, option: str) -> Any:
    """The inputs that a user's function picks out of a batch. Raises `InputError` where it raises."""
    try:
        return pick(batch)
    except FxpruneError:
        raise
    except Exception as error:
        raise InputError(
            "the function that picks the inputs out of a batch raises",
            at=f"{option}={getattr(pick, '__name__', type(pick).__name__)}, batch {number}",
            why=f"{text_of(error)}; it was called with {described(batch)}",
            do="pass a function from a batch to what one call takes, such as `lambda batch: batch[0]`",
        ) from error


def described(batch: Any) -> str:
    """A short text of a batch: its kind and the shapes of its tensors.

    >>> import torch
    >>> described((torch.zeros(2, 3), 4))
    'a tuple with tensors [2, 3]'
    """
    if isinstance(batch, Tensor):
        return f"one tensor {list(batch.shape)}"
    shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    return f"a {type(batch).__name__} with {'tensors ' + ', '.join(shapes[:4]) if shapes else 'no tensors'}"


def all_batches(batches: Any) -> list[Any]:
    """The batches as a list, which can be read several times. Raises `InputError` for what gives no batches."""
    _check_iterable(batches)
    return list(_read(batches))


def each_batch(batches: Any, *, what: str, progress: bool = False) -> Iterator[tuple[int, Any]]:
    """Every batch with its number, behind a progress bar. what: what is measured on them, for the bar.

    Raises `InputError` for what gives no batches.
    """
    _check_iterable(batches)
    number = -1
    for number, batch in enumerate(_read(bar(batches, what=what, unit="batch", show=progress))):
        yield number, batch
    if number < 0:
        raise InputError("there is no batch", why="the iterable is empty", do="pass at least one batch")


def called(model: nn.Module, inputs: Inputs, number: int) -> Any:
    """The outputs of the model for a batch. Raises `InputError` where it raises. number: of the batch, for messages."""
    try:
        return model(*inputs[0], **inputs[1])
    except FxpruneError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        raise InputError(
            "the model raises on a batch",
            at=f"batch {number}",
            why=f"{type(error).__name__}: {text}; it was called with tensors of the shapes {', '.join(shapes)}",
            do="let a batch hold what one call of the model takes",
        ) from error


def not_finite(layer: str, batch: str) -> InputError:
    """The error for a layer that reads or gives NaN or infinities."""
    why, do = "what it reads or gives holds NaN or infinities", "leave out that batch, or repair the weights"
    return InputError("activations are not finite", at=f'"{layer}", {batch}', why=why, do=do)


def sample_count(batch: Any) -> int:
    """The number of samples of a batch: the size of the first dimension of its first tensor; 1 if it has none.

    >>> import torch
    >>> sample_count({"x": torch.zeros(3, 2), "y": 4})
    3
    """
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    return 1 if first is None or not first.ndim else len(first)


def samples_of(batch: Any) -> list[Any]:
    """The samples of a batch, as batches of one: all tensors are split along their first dimension, which they share.

    A batch without such a dimension is one sample.

    >>> import torch
    >>> [(x.tolist(), y.tolist()) for x, y in samples_of((torch.zeros(2, 1), torch.arange(2)))]
    [([[0.0]], [0]), ([[0.0]], [1])]
    """
    leaves, spec = pytree.tree_flatten(batch)
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or sizes == {0}:
        return [batch]
    count = sizes.pop()
    return [
        pytree.tree_unflatten([leaf[i : i + 1] if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        for i in range(count)
    ]


def inputs_like(example: Inputs, model: nn.Module | None = None) -> Callable[[Any], Any]:
    """A function that picks the inputs of a model out of a batch that may hold labels too.

    It gives the batch if that has the form of the example inputs; else its first entry, as many entries as the model
    takes, or the keywords of the example, if they have it; else the batch, which then does not fit. Example inputs by
    name may stand in a batch by position, if the model's forward takes them first.

    >>> import torch
    >>> x, labels = torch.zeros(4, 3), torch.zeros(4)
    >>> pick = inputs_like(((x,), {}))
    >>> pick(x) is x, pick([x, labels]) is x
    (True, True)
    >>> pick = inputs_like(((x, x), {}))
    >>> len(pick((x, x, labels)))
    2
    """
    forms = [example, *by_position(example, model)]

    def pick(batch: Any) -> Any:
        for form in forms:
            if _has_form(batch, form):
                return batch
            if isinstance(batch, (tuple, list)) and batch and _has_form(batch[0], form):
                return batch[0]
            if isinstance(batch, (tuple, list)) and form[0] and _has_form(tuple(batch[: len(form[0])]), form):
                return tuple(batch[: len(form[0])])
        if isinstance(batch, Mapping) and not example[0] and example[1].keys() <= batch.keys():
            return {name: batch[name] for name in example[1]}
        return batch

    return pick


def by_position(example: Inputs, model: nn.Module | None) -> Iterator[Inputs]:
    """Yields example inputs that have names as arguments by position, where forward takes no others before them."""
    args, named = example
    if model is not None and named:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(model.forward).parameters.values()
        names = [each.name for each in parameters if each.kind in kinds][len(args) : len(args) + len(named)]
        if set(names) == named.keys():
            yield (*args, *(named[name] for name in names)), {}


def _has_form(batch: Any, example: Inputs) -> bool:
    """True if a batch is so many positional arguments with these keywords, nested in the same way."""
    try:
        args, kwargs = normalize(batch)
    except InputError:
        return False
    if kwargs.keys() != example[1].keys():
        return False
    ordered = (args, {name: kwargs[name] for name in example[1]})
    return bool(pytree.tree_structure(ordered) == pytree.tree_structure(example))


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches. An exception of the loader itself gets a note that says at which batch it was raised."""
    iterator, number = iter(batches), 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            if hasattr(error, "add_note"):  # since Python 3.11
                error.add_note(f"raised by the data at batch {number}; the model is as it was: mend the loader")
            raise
        yield batch
        number += 1


def _check_iterable(batches: Any) -> None:
    """Raises `InputError` for what gives no batches."""
    if isinstance(batches, (Tensor, dict, str)) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches must be a data loader or a list of batches, not {type(batches).__name__}",
            why="the model is called once for each element of it",
            do="pass for example `[torch.randn(64, 3, 32, 32)]`",
        )
