"""The model and the example inputs of a command: weights, mode and device are set."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fxprune.cli import models, weights
from fxprune.cli.input_files import InputFile
from fxprune.cli.inputs import filled
from fxprune.cli.output_files import check_readable
from fxprune.cli.random_numbers import seed_all, watched
from fxprune.cli.usage import unique_dict
from fxprune.errors import FxpruneError


class RandomWeightsWarning(UserWarning):
    """The weights of a model are random, and the result of the command depends on them."""


def model_and_inputs(
    options: argparse.Namespace, say: Callable[[str], None], *, by_weights: bool = False
) -> tuple[nn.Module, Any]:
    """The model and the example inputs that options name.

    by_weights: True if the result depends on the weights, and nothing else says that they are random: warns then of
        random ones, unless a seed was asked for.
    """
    args = unique_dict("--arg", options.arg)
    check_readable(*(entry.path for entry in options.input if isinstance(entry, InputFile)))
    seed_all(options.seed)
    say(f"making {options.model}")
    with _watched() as drawn:
        model, library = models.build(options.model, args)
    if options.weights is not None:
        for note in weights.load_into(model, options.weights, options.weights_key):
            say(note)
    else:
        _tell_random(options, say, library=library, drawn=drawn(), by_weights=by_weights)
    try:
        model.train(options.train)
    except NotImplementedError:  # by the module of an exported program, which has one mode
        say(f"{options.model} keeps the mode that it was exported in")
    try:
        model = model.to(options.device)
        inputs = filled(options.input, model, options.seed, options.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = str(error).strip().splitlines()
        raise FxpruneError(
            f'the device "{options.device}" cannot be used',
            why=text[0] if text else "",
            do="choose another --device; cpu is always there",
        ) from error
    return model, inputs


def _tell_random(
    options: argparse.Namespace, say: Callable[[str], None], *, library: bool, drawn: bool, by_weights: bool
) -> None:
    """Says or warns that weights are random. drawn: True if the callable seems to have made such weights."""
    warned = by_weights and not options.seeded
    do = "--weights FILE loads others" + (f", --seed {options.seed} says that they are meant" if warned else "")
    text = f"the weights of {options.model} are random (seed {options.seed}); {do}"
    if not library:
        why = "numbers were drawn when it was made, and no state_dict was loaded"
        text = f"the weights of {options.model} seem to be random: {why}; {do}"
    if warned and (library or drawn):
        warnings.warn(text, RandomWeightsWarning, stacklevel=2)
    elif library:
        say(text)


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[], bool]]:
    """Yields a function: True if random numbers were drawn since it began, and no module has loaded a state_dict."""
    load, loaded = nn.Module.load_state_dict, []

    def noting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loaded.append(module)
        return load(module, *args, **kwargs)

    nn.Module.load_state_dict = noting  # type: ignore[method-assign, assignment]  # set back below
    try:
        with watched() as drawn:
            yield lambda: not loaded and drawn()
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
