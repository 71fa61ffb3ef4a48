"""Messages of processes before they work together, so that all of them raise where one does."""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.errors import PlanError, text_of

ValueT = TypeVar("ValueT")

_GOES_ON, _FAILED = 0, 1


class ProcessLostError(PlanError):
    """Another process does not answer any more."""


class StopTogetherError(BaseException):
    """Carries an error that all processes have to raise through code that handles exceptions. Internal."""

    def __init__(self, error: PlanError) -> None:
        self.error = error
        super().__init__(str(error))


class Talk:
    """The talk of the processes of a group. There is one for each group: see `talk_of_group`.

    Before each common operation every process says what it is about to do. If one has raised, or is about to do
    something else, all raise. A process that has died is noticed by `torch.distributed`, which raises: at once where
    its connection is lost, else after the timeout of the process group.
    """

    def __init__(self, group: Any) -> None:
        self.group, self.device = group, _device_of(group)
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.most_whole, self.largest = 0, 0
        self._depth, self._ended = 0, False
        self._alive: list[tuple[Any, int]] = []

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Lets all processes finish what is done here, or raise. May be nested."""
        if not self._depth:
            self._ended, self.most_whole, self.largest, self._alive = False, 0, 0, []
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self.say("the end")
        except StopTogetherError as stop:
            if self._depth == 1:
                raise stop.error from stop.error.__cause__
            raise
        except BaseException as error:
            if self._depth == 1:
                self._fail(error)
            raise
        finally:
            self._depth -= 1

    def say(self, what: str) -> None:
        """Goes on if all processes say the same. Raises `PlanError` on all of them if not."""
        code = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=7).digest(), "big")
        self._exchange(_GOES_ON, code, what)

    def all(self, value: ValueT) -> list[ValueT]:
        """The values of all processes, in the order of their ranks."""
        found: list[Any] = [None] * self.size
        with self.answered():
            distributed.all_gather_object(found, value, group=self.group)
        return found

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Raises `ProcessLostError` where another process does not answer."""
        try:
            yield
        except RuntimeError as error:
            lost = ProcessLostError(
                "another process does not answer",
                why=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
                do="look for its error; no process has changed its model",
            )
            lost.__cause__ = error
            raise self._stop(lost) from error

    def gathered(self, tensor: torch.Tensor) -> None:
        """Counts the bytes of a tensor that was gathered, and of those that are still in memory."""
        octets = tensor.numel() * tensor.element_size()
        self._alive = [(ref, size) for ref, size in self._alive if not ref.expired()]
        reference: Any = StorageWeakRef
        self._alive.append((reference(tensor.untyped_storage()), octets))
        self.most_whole = max(self.most_whole, sum(size for _, size in self._alive))
        self.largest = max(self.largest, octets)

    def note(self) -> str:
        """The sentence for a record: how much was whole on this process."""
        return (
            f"sharded over {self.size} processes, and proven there: at most {self.most_whole:,} bytes of weights were "
            f"whole at a time on process {self.rank} (the largest weight has {self.largest:,})"
        )

    def _fail(self, error: BaseException) -> None:
        """Tells the others that this process has raised, unless they know it."""
        if not self._ended:
            with contextlib.suppress(StopTogetherError):  # the error of this process is the one to show
                self._exchange(_FAILED, 0, text_of(error))

    def _exchange(self, status: int, code: int, text: str) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            mine = torch.tensor([status, code], dtype=torch.int64, device=self.device)
            theirs = [torch.empty_like(mine) for _ in range(self.size)]
            with self.answered():
                distributed.all_gather(theirs, mine, group=self.group)
            found = torch.stack(theirs).tolist()
            if status == _GOES_ON and all(each == found[0] for each in found):
                return
            texts = self.all(text)
        failed = next((rank for rank, (other, _) in enumerate(found) if other == _FAILED), None)
        if failed is not None:
            do = "no process has changed its model; mend the cause"
            at = f"process {self.rank} of {self.size}"
            raise self._stop(PlanError(f"process {failed} raised", at=at, why=texts[failed], do=do))
        other = next(rank for rank, each in enumerate(found) if each != found[0])
        raise self._stop(
            PlanError(
                "the processes do not do the same",
                at=f"process {self.rank} of {self.size}",
                why=f"process 0 is at {texts[0]}, and process {other} at {texts[other]}",
                do="give all processes the same arguments, the same seed, and the same number of batches",
            )
        )

    def _stop(self, error: PlanError) -> BaseException:
        """The error as it has to be raised here."""
        self._ended = True
        return StopTogetherError(error) if self._depth else error


def talk_of_group(group: Any) -> Talk:
    """The talk of the processes of a group."""
    distributed.get_rank(group)  # raises for what is no group
    if group not in _TALKS:
        _TALKS[group] = Talk(group)
    return _TALKS[group]


_TALKS: weakref.WeakKeyDictionary[Any, Talk] = weakref.WeakKeyDictionary()


def _device_of(group: Any) -> torch.device:
    """The device of the tensors that a process group works on: the CPU if it can."""
    kinds = [pair.partition(":")[0] for pair in distributed.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
