"""`save` and `load`: the weights and the plan of a small model in one safetensors file, without pickle.

The file has the tensors of `state_dict`. The other part of a model is its code; the plan says how the small model is
made from the code of the original.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._record import Record, attach, steps_in
from fxprune._record import data as record_data
from fxprune._record import record as record_of_model
from fxprune._record.holder import step_data, steps_of
from fxprune._record.since import since
from fxprune._transform import transform
from fxprune.arguments import checks_arguments
from fxprune.artifacts.hooks import carry_hooks
from fxprune.artifacts.rebuild import check_sizes, needs_inputs, rebuild, replace_tensors
from fxprune.artifacts.safetensors_file import DTYPES, NAMES, SafetensorsFile, check_writable, opened, raw_bytes, write
from fxprune.capture.dispatched import undispatched
from fxprune.capture.given_attributes import given_attributes
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import public_call
from fxprune.capture.tensors import Tensors
from fxprune.errors import FileError, NothingRemovedWarning, PlanError, level_of_user, nearest
from fxprune.files import Field, PathLike, parse_json
from fxprune.offloaded import is_dispatched
from fxprune.planning.combine import shapes_after
from fxprune.planning.plan import Plan
from fxprune.planning.plan_file import plan_of
from fxprune.rewrite.tensors import like

ModuleT = TypeVar("ModuleT", bound=nn.Module)

FORMAT, VERSION, KEY = "fxprune weights", 1, "fxprune"

INLINE = 1 << 20
"""The largest size, in bytes, of a buffer outside `state_dict` that is stored; of a larger one the hash is stored."""

OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl"), "torch.load"),
    ".pt2": "torch.export.load",
    ".onnx": "onnxruntime",
}
"""Suffixes of other formats -> what reads these."""

Buffers = Mapping[str, torch.Tensor]


@checks_arguments()
@public_call()
def save(small: nn.Module | ExportedProgram, path: PathLike, *, record: Record | None = None) -> None:
    """Writes a small model into one safetensors file: its weights, and what `load` needs to rebuild it.

    The names of the tensors are those of `small.state_dict()`, so that any program that reads safetensors can use the
    file; tied tensors are stored once. Plan and record are in the metadata. The file is written completely or not at
    all (see `fxprune.files.replacing`), and the same model always gives the same bytes.

    Args:
        small: a result of `transform`, also after more training; only read.
        path: the file to write; the usual suffix is .safetensors. One of another format, such as .pt, is warned of.
        record: the record to store. By default those of all steps that made `small`: the file can be loaded into any
            of the models before a step.

    Raises `FileError` for tensors that cannot be stored, and `PlanError` if a shape differs from the plan's.
    """
    if isinstance(small, ExportedProgram):
        raise FileError(
            "an exported program cannot be stored",
            why="it is a graph, and no class could be loaded into it",
            do="torch.export.save(program, path), and fxprune.record(program).plan.save(other_path)",
        )
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in OTHER_FORMATS:
        text = f'"{os.fspath(path)}" is written as safetensors, which {OTHER_FORMATS[suffix]} does not read'
        do = "name it .safetensors, and load it by fxprune.load"
        warnings.warn(f"{text}: {do}", UserWarning, level_of_user())
    if is_dispatched(small):
        small = undispatched(small)
    made, earlier = _records(small) if record is None else (record, ())
    state = _tensors_to_store(small, made)
    for name, tensor in state.items():
        check_writable(name, tensor)
    text, tied = described(small, made, state, earlier=earlier)
    write(path, {name: tensor for name, tensor in state.items() if name not in tied}, {"format": "pt", KEY: text})


def described(
    small: nn.Module, made: Record, state: Mapping[str, Any] | None = None, *, earlier: Sequence[Record] = ()
) -> tuple[str, dict[str, str]]:
    """Returns the text that a file has beside the tensors, and the names that are not stored: those of tied tensors.

    Weights may be without values. state: the tensors to store. earlier: the records of the steps before. Raises
    `PlanError` if a shape differs from the plan's.
    """
    state = _tensors_to_store(small, made) if state is None else state
    first: dict[int, str] = {}
    tied = {name: other for name, tensor in state.items() if (other := first.setdefault(id(tensor), name)) != name}
    data = {
        "format": FORMAT,
        "version": VERSION,
        "plan": record_data.plan_data(made),
        "record": record_data.data_of(made),
        "tied": tied,
        "buffers": {name: _buffer_data(buffer) for name, buffer in _buffers_outside_state(small, state, made).items()},
        "training": [name for name, module in small.named_modules() if module.training],
        **({"earlier": [step_data(one) for one in earlier]} if earlier else {}),
    }
    _check_unchanged(state, made)
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")), tied


@checks_arguments("path", "also", "methods")
@public_call()
def load(
    path: PathLike,
    *,
    into: ModuleT,
    example_inputs: Any = None,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
) -> ModuleT:
    """Rebuilds a small model from a file of `save` and the original's architecture; weights are equal bit for bit.

    Args:
        path: the file; of several files, their index.
        into: a model of the original architecture, with any weights and on any device. Only read; the result shares no
            tensor with it. For the device "meta", the result is on the CPU.
        example_inputs, also, methods: as for `transform`, in the dtypes of the file. They are needed if the plan
            changes a graph or the class of a module, or was made by the path "export" or "hooks"; the model is then
            analysed again. If the plan changes only tensors and attributes of modules, they may be left out.

    Returns a new model with the weights, dtypes, train/eval modes and record of the saved one. It is made by the same
    path, and has the devices, the `requires_grad` flags and the hooks of `into`. A warning names hooks of parameters
    that cannot work on smaller ones.

    Raises `MissingFileError` if there is no such file; `FileError` for one that is truncated, of another format, or
    contradicts itself; `PlanError` if `into` has another architecture or inputs are missing; `InputError` if the
    inputs do not fit.

    >>> import os, tempfile, torch, fxprune
    >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> small = fxprune.transform(make(), torch.randn(1, 4), ratio=0.5)
    >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
    >>> save(small, path)
    >>> again = load(path, into=make())
    >>> all(torch.equal(t, again.state_dict()[name]) for name, t in small.state_dict().items())
    True
    """
    file = opened(path)
    data, made, earlier = _read(file)
    if not isinstance(into, nn.Module):
        raise FileError(f"into must be a model, not {type(into).__name__}", do="pass the original, with any weights")
    if earlier:
        shapes = {name: tuple(tensor.shape) for name, tensor in Tensors.of(into).items()}
        made = since((*earlier, made), shapes) or made
    plan, small = made.plan, None
    model = _in_dtypes(into, file, data["buffers"])
    for name, module in model.named_modules():
        module.training = name in made.training
    if example_inputs is None:
        reason = needs_inputs(plan)
        if reason:
            raise PlanError(
                f"{file.source} needs example inputs to be loaded",
                why=f"{reason}, which follows from an analysis of the model",
                do="pass `example_inputs`, as to `transform`",
            )
        small = rebuild(model, plan, file.source, file.shapes)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingRemovedWarning)  # the user was warned when it was saved
            options: dict[str, Any] = {"also": also, "methods": methods, "verify": False, "norms": made.norms}
            small = transform(model, example_inputs, plan=plan, path=plan.path, **options)
        check_sizes(small, plan, file.source)
    _load_tensors(small, file, {name: field.text() for name, field in data["tied"].mapping().items()}, data["buffers"])
    training = set(data["training"].texts())
    for name, module in small.named_modules():
        module.training = name in training
    carry_hooks(into, small, plan)
    attach(small, made)
    return cast(ModuleT, small)


def record_in(path: PathLike) -> Record:
    """Returns the record, with its plan, in a file of `save`; does not read the weights.

    Raises `FileError` or `PlanError` as `load` does.
    """
    return _read(opened(path)).record


class _InFile(NamedTuple):
    """The metadata of a file, the record of the last step in it, and those of the steps before."""

    data: Field
    record: Record
    earlier: tuple[Record, ...]


def _read(file: SafetensorsFile) -> _InFile:
    """Returns the records in a file."""
    if KEY not in file.texts:
        raise file.wrong(
            f'it was not written by fxprune: its metadata has no key "{KEY}"',
            do="read it with safetensors.torch.load_file",
        )
    source = f'the metadata "{KEY}" of {file.source}'
    data = Field(parse_json(file.texts[KEY].encode(), source), source)
    if not isinstance(data.value, dict) or data.value.get("format") != FORMAT:
        raise data.wrong(f'there is no "format": "{FORMAT}"')
    if data.value.get("version") != VERSION:
        raise data.wrong(f"this fxprune reads version {VERSION}", "load it with the fxprune that wrote it")
    data.object("format version plan record tied buffers training".split(), ("earlier",))
    plan = plan_of(Field(data["plan"].value, source, "plan", PlanError), Plan)
    made = record_data.record_of(data["record"], plan)
    _check_shapes(file, plan_shapes=shapes_after(plan))
    return _InFile(data, made, steps_of(data["earlier"]) if "earlier" in data.mapping() else ())


def _records(small: nn.Module) -> tuple[Record, tuple[Record, ...]]:
    """Returns the record of a small model, and those of the models that it was made from."""
    steps = steps_in(small)
    return record_of_model(small), () if steps is None else steps.earlier


def _check_shapes(file: SafetensorsFile, plan_shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in file.shapes.items():
        if plan_shapes.get(name, shape) != shape:
            raise file.wrong(f"the plan in it leaves shape {plan_shapes[name]}", at=f'"{shown_name(name)}" of {shape}')


def shown_name(name: str) -> str:
    """Returns a name in a form that a message can show."""
    return name if name.isprintable() else repr(name)


def _tensors_to_store(small: nn.Module, made: Record) -> dict[str, Any]:
    """Returns the tensors to store: `state_dict`, without buffers that the original keeps out of it.

    These can appear in the `state_dict` of a copied graph module: a deep copy forgets which buffers it leaves out.
    """
    structure = made.plan.known_structure("what it was made for")
    graph = isinstance(small, fx.GraphModule)
    kept = ({*structure.shapes} - {*structure.outside}) | {f"{node}_map" for node in made.plan.maps}
    buffers = dict(small.named_buffers(remove_duplicate=False)) if graph else {}
    state = small.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name in kept or name not in buffers}


def _check_unchanged(state: Mapping[str, torch.Tensor], made: Record) -> None:
    """Raises `PlanError` if a shape differs from the plan's: the model was changed after it was pruned."""
    after = shapes_after(made.plan)
    for name, tensor in state.items():
        if after.get(name, tuple(tensor.shape)) != tuple(tensor.shape):
            raise PlanError(
                "the model is not what its plan leaves",
                at=f'"{name}" has shape {tuple(tensor.shape)}',
                why=f"the plan leaves {after[name]}; was the model changed after `transform`?",
                do="save what `transform` returned; two plans in one are record=record(first).then(record(second))",
            )


def _buffers_outside_state(small: nn.Module, state: Mapping[str, Any], made: Record) -> Buffers:
    """Returns the buffers outside `state_dict` that still have the shape from the record."""
    found = dict(small.named_buffers(remove_duplicate=False)).items()
    return {n: b for n, b in found if n not in state and made.after.get(n) == tuple(b.shape) and b.dtype in NAMES}


def _buffer_data(buffer: torch.Tensor) -> dict[str, Any]:
    content = bytes(raw_bytes(buffer))
    made = {"dtype": NAMES[buffer.dtype], "shape": list(buffer.shape), "sha256": hashlib.sha256(content).hexdigest()}
    return made | ({"data": base64.b64encode(content).decode()} if len(content) <= INLINE else {})


def _in_dtypes(into: nn.Module, file: SafetensorsFile, buffers: Field) -> nn.Module:
    """Returns a copy of the model with the floating dtypes of the file, which are also those of the inputs."""
    dtypes = dict(file.dtypes)
    for name, field in buffers.mapping().items():
        dtypes[name] = DTYPES[field.object(("dtype", "shape", "sha256"), ("data",))["dtype"].text(DTYPES)]
    named = [*into.named_parameters(remove_duplicate=False), *into.named_buffers(remove_duplicate=False)]
    converted: dict[int, torch.Tensor] = {}
    for name, tensor in named:
        dtype = dtypes.get(name, tensor.dtype)
        other = dtype != tensor.dtype and dtype.is_floating_point and tensor.is_floating_point()
        if other or (isinstance(tensor, nn.Parameter) and given_attributes(tensor)):  # which refer to the copy then
            converted.setdefault(id(tensor), like(tensor, tensor.detach().to(dtype if other else tensor.dtype)))
    return copy_module(into, lambda tensor: converted.get(id(tensor), tensor))


def _load_tensors(small: nn.Module, file: SafetensorsFile, tied: Mapping[str, str], buffers: Field) -> None:
    """Replaces the tensors of the rebuilt small model by those of the file, in place."""
    state = small.state_dict(keep_vars=True)
    for name in (*file.shapes, *tied):
        if name not in state:
            raise file.wrong(f'the model has no "{shown_name(name)}"; {nearest(name, state)}')
    first: dict[int, str] = {}
    for name, tensor in state.items():
        other = first.setdefault(id(tensor), name)
        if (tied.get(name, name), name in file.shapes) != (other, other == name):
            ours = f'it is tied to "{other}"' if other != name else "it is a tensor of its own"
            theirs = f'tied to "{tied[name]}"' if name in tied else "stored" if name in file.shapes else "missing"
            raise file.wrong(f"in the model {ours}, in the file it is {theirs}", at=f'"{name}"')
    new: dict[int, torch.Tensor] = {}
    for name, shape in file.shapes.items():
        _check_like(file, name, shape, file.dtypes[name], state[name])
    for name, values in file.tensors():
        new[id(state[name])] = values
    outside = dict(small.named_buffers(remove_duplicate=False))
    for name, field in buffers.mapping().items():
        if name not in outside or name in state:
            raise file.wrong(f'the model has no buffer "{shown_name(name)}" outside state_dict')
        new.setdefault(id(outside[name]), _buffer_values(file, field, name, outside[name]))
    replace_tensors(small, new)
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        if tensor.device.type == "meta":
            raise FileError(
                f"{file.source} cannot be loaded into a model on the meta device",
                why=f'"{name}" is not in the file: it is what the model made it',
                do="pass a model with values",
            )


def _check_like(
    file: SafetensorsFile, name: str, shape: tuple[int, ...], dtype: torch.dtype, tensor: torch.Tensor
) -> None:
    """Raises `FileError` if shapes differ, or dtypes of which not both are floating point."""
    if shape != tuple(tensor.shape):
        raise file.wrong(f"the model has shape {tuple(tensor.shape)}", at=f'"{name}" of shape {shape}')
    if dtype != tensor.dtype and not (dtype.is_floating_point and tensor.is_floating_point()):
        raise file.wrong(f"the model has {tensor.dtype}", at=f'"{name}" of {dtype}')


def _buffer_values(file: SafetensorsFile, field: Field, name: str, derived: torch.Tensor) -> torch.Tensor:
    """Returns a buffer outside `state_dict`: the stored one, or that of the rebuilt model if its hash is right."""
    field.object(("dtype", "shape", "sha256"), ("data",))
    shape, dtype = field["shape"].shape(), DTYPES[field["dtype"].text(DTYPES)]
    _check_like(file, name, shape, dtype, derived)
    if "data" in field.value:
        try:
            content = base64.b64decode(field["data"].text(), validate=True)
        except (binascii.Error, ValueError):
            raise field["data"].wrong("it is no base64") from None
        if len(content) != derived.numel() * dtype.itemsize:
            raise field["data"].wrong(f"{derived.numel()} numbers of {dtype} are needed")
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        values = flat.view(dtype).reshape(shape)
    elif derived.device.type == "meta":
        raise field.wrong("it is too large to be stored, and a model on the meta device has no values of its own")
    else:
        values, content = derived.to(dtype), bytes(raw_bytes(derived.to(dtype)))
    if hashlib.sha256(content).hexdigest() != field["sha256"].text():
        stored = "data" in field.value
        raise field.wrong("its numbers are not those that were saved" + ("" if stored else ", and they are not stored"))
    return values
