"""The memory of a run that waits, in a temporary file."""

from __future__ import annotations

import contextlib
import io
import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


class OwnResults(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that notes the results of a run, but for those in the memory of what the run was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        read = {_address(tensor): tensor in self._own for tensor in _plain_tensors((args, kwargs))}
        for tensor in _plain_tensors(made):
            if read.get(_address(tensor), True):
                self._own[tensor] = None
        return made

    def storages(self) -> list[torch.UntypedStorage]:
        """The memory that is still in use."""
        alive = {_address(tensor): tensor.untyped_storage() for tensor in self._own}
        return [storage for storage in alive.values() if storage.resizable()]


class Parked:
    """The results of a run, which are in a file while they are not needed.

    The file has no name where the system allows that, so that nothing is left of it when the process is killed.
    """

    def __init__(self) -> None:
        self.results = OwnResults()
        self._opened = contextlib.ExitStack()
        self._file: io.BufferedRandom | None = None
        self._away: list[tuple[torch.UntypedStorage, int]] = []

    def park(self) -> bool:
        """Write the results to the file and free their memory. Returns False, with all in memory, if the file fails."""
        storages = self.results.storages()
        try:
            if self._file is None:
                with contextlib.ExitStack() as opened:
                    self._file = opened.enter_context(tempfile.TemporaryFile(prefix="fxprune-repair-"))
                    self._opened = opened.pop_all()
            self._file.seek(0)
            for storage in storages:
                self._file.write(_bytes_of(storage).to("cpu", copy=True).numpy().data)
            self._file.truncate()
            self._file.flush()
        except OSError:
            self.close()
            return False
        self._away = [(storage, storage.nbytes()) for storage in storages]
        for storage in storages:
            storage.resize_(0)
        return True

    def fetch(self) -> None:
        """Read the results back. Raises `OSError` if the file cannot be read."""
        if self._file is None:
            return
        self._file.seek(0)
        away, self._away = self._away, []
        for storage, size in away:
            read = torch.empty(size, dtype=torch.uint8)
            if self._file.readinto(read.numpy().data) != size:
                raise OSError("the temporary file of a repair is shorter than it was")
            storage.resize_(size)
            _bytes_of(storage).copy_(read)

    def close(self) -> None:
        """Delete the file."""
        self._opened.close()
        self._file, self._away = None, []


def _plain_tensors(values: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.numel()]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """The memory as a tensor of bytes, [bytes]."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
