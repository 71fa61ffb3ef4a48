"""The latency of a model: the time of one forward on this machine, measured with `torch.utils.benchmark`.

The clock of torch waits for the device, and warms up before it counts. A figure is a median, with the distance between
the quartiles as its spread.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.arguments import checks_arguments
from fxprune.capture.fake_tensors import Real
from fxprune.capture.inputs import Inputs, check_initialised, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.process_state import clean_caches, public_call, same_random_state
from fxprune.capture.tensors import Tensors
from fxprune.errors import CaptureError, counted, level_of_user, text_of
from fxprune.progress import long_step

SHORTEST = 2e-3
"""The least seconds of a measurement, if a call takes less: then several are measured together."""

MOST_CALLS = 100
"""The most calls that are measured together."""

MOST_COPIED = 1 << 28
"""The most bytes of parameters that are copied for the calls. More of them share their memory with the model."""

Clock = Callable[[Callable[[], Any]], float]
"""Takes a function, and gives the seconds of one call."""

Runs = Callable[[nn.Module, Inputs], contextlib.AbstractContextManager["Runnable"]]
"""Makes a copy of a model that can be called: `runnable` for a forward on the inputs, or a function like it."""


@dataclass(frozen=True)
class Latency:
    """The time of one forward.

    seconds: the median. spread: between the quartiles, in seconds. rounds: the number of measurements.
    device: where the model is, such as "cpu". threads: the number of threads of torch.

    >>> print(Latency(0.0123, 0.0004, 50, "cpu", 1))
    12.3 ms (± 2%, 50 rounds, cpu, 1 thread)
    """

    seconds: float
    spread: float
    rounds: int
    device: str
    threads: int

    def __str__(self) -> str:
        how = f"{counted(self.rounds, 'round')}, {self.device}, {counted(self.threads, 'thread')}"
        return f"{milliseconds(self.seconds)} (± {self.share:.0%}, {how})"

    @property
    def share(self) -> float:
        """Half of the spread over the median."""
        return self.spread / 2 / self.seconds


def milliseconds(seconds: float) -> str:
    """A time as text.

    >>> milliseconds(1.23456), milliseconds(0.0123456), milliseconds(0.0000123)
    ('1235 ms', '12.3 ms', '0.0123 ms')
    """
    number = 1000 * seconds
    return f"{number:.0f} ms" if number >= 100 else f"{number:.3g} ms"


@checks_arguments("model")
@public_call_on_model
def measure(model: nn.Module, example_inputs: Any, *, rounds: int = 20, clock: Clock | None = None) -> Latency:
    """The latency of a model on the device where it is, without gradients, in the mode in which it is.

    Its parameters, buffers and the random state are as before afterwards.

    Args:
        rounds: the number of measurements, after a few to warm up.
        clock: a function that takes a function and gives the seconds of one call; by default a `Timer` of torch.

    Raises `CaptureError` for a model on the meta device, whose forward computes nothing, and where the forward raises.
    """
    return measured_in_turn([model], example_inputs, rounds, clock)[0]


@public_call()
def measured_in_turn(
    models: Sequence[nn.Module],
    example_inputs: Any,
    rounds: int = 20,
    clock: Clock | None = None,
    runs: Runs | None = None,
) -> list[Latency]:
    """The latency of each model. They are measured in turns, so that what slows the machine down slows down all.

    Each figure is the median of the model's own rounds. The arguments are those of `measure`. runs: what a call is,
    where it is not a forward on the inputs.
    """
    return [
        summed_up(times, model)
        for times, model in zip(in_turn(models, example_inputs, rounds, clock, runs), models, strict=True)
    ]


def in_turn(
    models: Sequence[nn.Module],
    example_inputs: Any,
    rounds: int,
    clock: Clock | None = None,
    runs: Runs | None = None,
) -> list[list[float]]:
    """The seconds of each round for each model."""
    inputs = normalize(example_inputs)
    for model in models:
        check_can_run(model)
    with long_step("latency"), contextlib.ExitStack() as stack:
        calls = [stack.enter_context((runs or runnable)(model, inputs)).call for model in models]
        clock = clock or clock_of(device_of(models[0]))
        times: list[list[float]] = [[] for _ in calls]
        for call in calls:
            call()
        for _ in range(rounds):
            for call, seconds in zip(calls, times, strict=True):
                seconds.append(clock(call))
    return times


def clock_of(device: torch.device) -> Clock:
    """The clock of torch, which waits for the device, and calls twice before it measures.

    A short call is repeated, so that one measurement takes about `SHORTEST` seconds; the mean counts.
    """
    from torch.utils.benchmark import Timer  # here, because it imports a compiler's helpers

    def clock(call: Callable[[], Any]) -> float:
        timer = Timer("call()", globals={"call": call}, num_threads=threads(), timer=timer_of(device))
        once = timer.timeit(1).mean
        return once if once > SHORTEST / 2 else timer.timeit(min(round(SHORTEST / once), MOST_CALLS)).mean

    return clock


def timer_of(device: torch.device) -> Callable[[], float]:
    """A function that returns the time in seconds, when the device has done everything that it was given.

    On the CPU with one thread it is the time that the processor has worked for this thread. So what other processes
    take does not count, and a busy machine gives the figures of an idle one.
    """
    if device.type == "cpu":
        return time.thread_time if threads() == 1 else time.perf_counter

    def timer() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return timer


def summed_up(times: Sequence[float], model: nn.Module) -> Latency:
    """The latency that some measurements of a model give."""
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Latency(statistics.median(times), quartiles[2] - quartiles[0], len(times), str(device_of(model)), threads())


def threads() -> int:
    """The number of threads that torch uses for one operation."""
    return torch.get_num_threads()


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of a model, the CPU for a model without them."""
    return next((entry.tensor.device for entry in Tensors.of(model).unique), torch.device("cpu"))


def device_name(device: torch.device) -> str:
    """The name of the hardware, such as "NVIDIA H200" or "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else device.type
    return device.type


def check_can_run(model: nn.Module) -> None:
    """Raises `CaptureError` for a model on the meta device, and for one whose weights are not made yet."""
    tensors = Tensors.of(model)
    check_initialised(tensors)
    if tensors.weightless:
        raise CaptureError(
            "the latency cannot be measured", why="the model is on the meta device, where nothing is computed",
            do="make the model on the device that it will run on",
        )  # fmt: skip


@dataclass(frozen=True)
class Runnable:
    """A copy of a model, and a function that runs it."""

    module: nn.Module
    call: Callable[[], Any]


@contextlib.contextmanager
def runnable(model: nn.Module, inputs: Inputs) -> Iterator[Runnable]:
    """A copy of the model, which runs without gradients.

    The first call finds the parameters that it writes into: from then on the copy has others instead. A small model's
    parameters are copied at once. Warns of a large model that a later call writes into others of its parameters.
    """
    parameters = dict(model.named_parameters())
    copy = Real(own=sum(parameter.nbytes for parameter in parameters.values()) <= MOST_COPIED)
    module, (args, kwargs) = copy.module(model), copy.tree(inputs)
    first = [copy.mode]
    versions: dict[str, int] = {}

    def call() -> Any:
        try:
            with torch.inference_mode(), first.pop() if first else contextlib.nullcontext():
                result = module(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                "the model's forward raises", raised=True, why=text_of(error), do="check that it runs on these inputs"
            ) from error
        if not versions:
            versions.update(_versions_of_shared(module, parameters))
        return result

    with clean_caches(model), same_random_state():
        yield Runnable(module, call)
    after = _versions_of_shared(module, parameters)
    if written := [name for name, version in versions.items() if after.get(name, version) != version]:
        warnings.warn(
            f"a call after the first wrote into {', '.join(written)} of your model, too large to be copied: "
            "the numbers there are other ones now. Load them again, and measure a model whose forward "
            "writes into no parameters",
            stacklevel=level_of_user(),
        )


def _versions_of_shared(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """The number of writes into each parameter of a copy that has the memory of the original's, by name."""
    return {
        name: tensor._version
        for name, tensor in module.named_parameters()
        if name in parameters and not tensor.is_inference() and tensor.data_ptr() == parameters[name].data_ptr()
    }
