"""The safetensors format. Writing gives the same bytes every time; reading checks every number in the header.

A file has 8 bytes with the length of the header, the header as JSON (name -> dtype, shape, first byte and the one after
the last), and then the tensors one after the other (https://huggingface.co/docs/safetensors). Nothing is executed.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch

from fxprune.capture.inputs import kind_of
from fxprune.errors import FileError
from fxprune.files import WHOLE, Field, PathLike, check_there, parse_json, read_bytes, replacing, shown

HEADER = 100_000_000
"""The largest number of bytes of a header; the library has the same limit."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, kind)
    for name, kind in (
        pair.split(":")
        for pair in """
    F64:float64 F32:float32 F16:float16 BF16:bfloat16 F8_E4M3:float8_e4m3fn F8_E5M2:float8_e5m2
    F8_E8M0:float8_e8m0fnu C64:complex64
    I64:int64 I32:int32 I16:int16 I8:int8 U64:uint64 U32:uint32 U16:uint16 U8:uint8 BOOL:bool
    """.split()
    )
}
"""Name of a dtype in the file -> dtype."""

TORCH = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
"""Suffixes of files that `torch.save` writes. Those of old versions begin as any pickle."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_writable(name: str, tensor: Any) -> None:
    """Raises `FileError` for a value that the format cannot store."""
    if not isinstance(tensor, torch.Tensor):
        why = f"it is a {type(tensor).__name__}, and only tensors are stored without pickle"
        raise FileError(f'"{name}" cannot be stored', why=why, do="keep it out of state_dict, or make it a tensor")
    if tensor.device.type == "meta":
        raise FileError(
            f'"{name}" cannot be stored',
            why="it is on the meta device and has no values",
            do="give the model its values first (`model.to_empty`, `load_state_dict`)",
        )
    wrapped = kind_of(tensor)
    if wrapped and tensor.layout is torch.strided and not tensor.is_quantized:
        why = f"it is {wrapped}, which knows how to store itself"
        do = "save before you convert it, or torch.save(small.state_dict(), path)"
        raise FileError(f'"{name}" cannot be stored', why=why, do=do)
    if tensor.layout is not torch.strided or tensor.dtype not in NAMES or tensor.is_quantized:
        kind = f"{tensor.dtype}" if tensor.layout is torch.strided else f"{tensor.layout}"
        raise FileError(f'"{name}" cannot be stored', why=f"safetensors knows no {kind}", do="convert it first")


def raw_bytes(tensor: torch.Tensor) -> Any:
    """Returns the bytes of a tensor, row by row."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def write(path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata, completely or not at all. Memory holds a second copy of one tensor at a time."""
    text, offsets = header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, metadata)
    with replacing(path) as file:
        file.write(text)
        for name in offsets:
            file.write(raw_bytes(tensors[name]))


def header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Returns the bytes before the tensors of a file, and where each tensor begins in it, in the order of the file.

    tensors: name -> dtype and shape. Raises `FileError` for a header that is too long.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))  # so that all are aligned
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    position = 0
    for name in names:
        (dtype, shape), begin = tensors[name], position
        position += math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, position]}
        offsets[name] = begin
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER:
        raise FileError(
            "the model cannot be stored",
            why=f"plan, record and the names of tensors take {len(text)} bytes, a header has at most {HEADER}",
            do="give its modules shorter names",
        )
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + begin for name, begin in offsets.items()}


class SafetensorsFile:
    """A file whose header has been read and checked.

    texts: the metadata. shapes, dtypes: those of the tensors, by name. offsets: where each of them begins in the file,
    in bytes. Raises `FileError` for a file that is truncated, of another format, or contradicts itself.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path
        self.source = f'the file "{os.fspath(path)}"'
        self.texts, entries, size = self._header()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.offsets: dict[str, int] = {}
        begins = os.stat(path).st_size - size
        spans = []
        for name, entry in entries.items():
            entry.object(("dtype", "shape", "data_offsets"))
            shape, dtype = entry["shape"].shape(), DTYPES[entry["dtype"].text(DTYPES)]
            offsets = entry["data_offsets"]
            if len(offsets.items()) != 2:
                raise offsets.wrong("it must be the first byte and the one after the last")
            begin, end = (offset.integer(0, size) for offset in offsets.items())
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise entry.wrong(f"its shape and dtype take {math.prod(shape) * dtype.itemsize} bytes")
            spans.append((begin, end, entry))
            self.shapes[name], self.dtypes[name], self.offsets[name] = shape, dtype, begins + begin
        position = 0
        for begin, end, entry in sorted(spans, key=lambda span: span[:2]):
            if begin != position:
                raise entry.wrong(f"tensors follow each other without overlap or gap, the next byte is {position}")
            position = end
        if position != size:
            raise self.wrong(f"the tensors end at byte {position}, the file has {size} bytes of them")

    def wrong(self, why: str, *, at: str = "", do: str = "") -> FileError:
        """Returns an error about this file."""
        return FileError(f"{self.source} is not what it should be", at=at, why=why, do=do or WHOLE)

    def _header(self) -> tuple[dict[str, str], dict[str, Field], int]:
        """Returns the metadata, the entry of every tensor, and the number of bytes after the header."""
        check_there(self.path)
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise FileError(f"{self.source} is no ordinary file", do="pass the name of a file")
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little") if size >= 8 else 0
            if not 2 <= length <= min(HEADER, size - 8):
                self._refuse_torch_file(file)
                why = f"a header of {length} bytes does not fit into {size} bytes, or is longer than {HEADER}"
                do = "pass a file that fxprune.save or safetensors wrote, whole"
                raise self.wrong(f"it is no safetensors file, or it is cut off: {why}", do=do)
            text = file.read(length)
        fields = Field(parse_json(text.rstrip(b" "), self.source), self.source).mapping()
        texts = fields.pop("__metadata__", Field({}, self.source, "__metadata__")).mapping()
        return {name: field.text() for name, field in texts.items()}, fields, size - 8 - length

    def _refuse_torch_file(self, file: BinaryIO) -> None:
        """Raises `FileError` for a file of `torch.save`, which begins as a zip or as a pickle."""
        file.seek(0)
        first, suffix = file.read(2), os.path.splitext(self.path)[1].lower()
        if first == b"PK" or (first in (b"\x80\x02", b"\x80\x04") and suffix in TORCH):
            what = f"{self.source} is no small model: it is a file of torch.save"
            why = "a file without the plan does not say what is left"
            raise FileError(what, why=why, do="pass the .safetensors file that `fxprune.save` wrote")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields every tensor by name, as a copy in memory."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                for name in self.shapes:
                    yield name, file.get_tensor(name).clone()
        except SafetensorError as error:
            raise self.wrong(f"safetensors says: {shown(str(error))}") from None


INDEX = ".index.json"
"""The end of the name of an index, which names the file of every tensor."""


class SafetensorsFiles(SafetensorsFile):
    """Several files with an index. texts: the metadata of the index."""

    def __init__(self, path: PathLike) -> None:
        self.path, self.source = path, f'the index "{os.fspath(path)}"'
        data = Field(parse_json(read_bytes(path, HEADER), self.source), self.source).object(("metadata", "weight_map"))
        self.texts = {
            k: field.text() for k, field in data["metadata"].mapping().items() if isinstance(field.value, str)
        }
        files = {name: field.text() for name, field in data["weight_map"].mapping().items()}
        self.shapes, self.dtypes, self.offsets, self._parts = {}, {}, {}, []
        for name in dict.fromkeys(files.values()):
            if name != os.path.basename(name):
                raise self.wrong(f'"{shown(name)}" is no name of a file beside it')
            part = SafetensorsFile(os.path.join(os.path.dirname(os.fspath(path)), name))
            self._parts.append(part)
            self.shapes |= part.shapes
            self.dtypes |= part.dtypes
        if self.shapes.keys() != files.keys():
            odd = next(iter(self.shapes.keys() ^ files.keys()))
            raise self.wrong("index and files do not have the same tensors", at=f'"{shown(odd)}"')

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields every tensor by name, as a copy in memory."""
        for part in self._parts:
            yield from part.tensors()


def opened(path: PathLike) -> SafetensorsFile:
    """Returns the file, or the files of an index, with all headers read and checked."""
    return (SafetensorsFiles if os.fspath(path).endswith(INDEX) else SafetensorsFile)(path)
