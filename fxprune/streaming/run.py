"""`stream`: a checkpoint of any size becomes a pruned one, tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxprune._record import Record
from fxprune.arguments import checks_arguments
from fxprune.artifacts.pretrained import WEIGHTS_INDEX
from fxprune.artifacts.rebuild import needs_inputs, rebuild
from fxprune.artifacts.weights import KEY, described
from fxprune.capture.process_state import public_call
from fxprune.configs.builder import NotBuiltError, has_config
from fxprune.configs.constructed import ChangedByHandError
from fxprune.configs.layers import LayersStayError, with_fewer_layers
from fxprune.configs.saving import beyond_config
from fxprune.depth.numbering import LayersGone
from fxprune.errors import FileError, InputError, PlanError, counted
from fxprune.files import PathLike, check_directory, remove_litter, write_text
from fxprune.planning.budgets import bytes_in
from fxprune.planning.combine import shapes_after
from fxprune.planning.plan import Plan
from fxprune.planning.plan_file import data_of
from fxprune.planning.sizes import EPSILONS
from fxprune.streaming.checkpoint import INDEX, Checkpoint, open_checkpoint
from fxprune.streaming.copying import memory_of
from fxprune.streaming.folder import SUMS, copy_others, guard, model_of, new_config, others_of, write_plain
from fxprune.streaming.names import StoredNames, names_of, renumbered, without_partner
from fxprune.streaming.packed import Packed, packed_of, parts_of_blocks, parts_of_scales
from fxprune.streaming.pieces import Output, StayingSlots, in_parameter_names, in_stored_names
from fxprune.streaming.planned import planned
from fxprune.streaming.progress import byte_bar
from fxprune.streaming.shards import (
    Shard,
    index_of,
    refuse_without_space,
    shards_of,
    write_shards,
)
from fxprune.streaming.target import STATE, FinishedFiles

NO_CONFIG = "the model has no config"
"""The reason where the model is none that a library makes from a config."""

SHOWN_NAMES = 8
"""The number of names of what is left out that the text of a result shows; `ignored` has all."""

MOST_WORKERS = 4
"""Threads, if no number is given; more do not help a disk."""


@dataclass(frozen=True)
class Streamed:
    """The result of `stream`.

    directory: the result. files: its files with weights. reused: those of them that a run before had finished.
    bytes_read: of the checkpoint's tensors. bytes_written: of the result's. seconds: that it took. workers: threads.
    config_says_it: True if the config says the small model, so that its own library loads it; False if only
        `fxprune.from_pretrained` does, or `fxprune.load` where the model has no config.
    why: why no config says it, "" if one does.
    ignored: tensors of the checkpoint that its class computes, and files that are left out: weights in other formats,
        checksums, and hidden files.
    removed_litter: temporary files of writers that were killed.
    """

    directory: Path
    files: tuple[str, ...]
    reused: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    seconds: float
    workers: int
    config_says_it: bool
    why: str
    ignored: tuple[str, ...]
    removed_litter: tuple[str, ...]

    def __str__(self) -> str:
        loader = "fxprune.load(..., into=original)" if self.why == NO_CONFIG else "fxprune.from_pretrained"
        how = "its config says it" if self.config_says_it else f"{loader} loads it ({self.why})"
        return (
            f"{self.directory}: {self.bytes_written} of {self.bytes_read} bytes in {counted(len(self.files), 'file')}, "
            f"{len(self.reused)} of them from a run before; {how}{_left_out(self.ignored)}"
        )


def _left_out(names: Sequence[str]) -> str:
    """A text about tensors and files that a result has not."""
    shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"; left out: {shown}" if names else ""


@checks_arguments()
def stream(
    source_dir: PathLike,
    plan: Plan | PathLike | Mapping[str, Any],
    out_dir: PathLike,
    *,
    example_inputs: Any = None,
    model: nn.Module | None = None,
    model_class: type[nn.Module] | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    shard_size: int | str = "5 GB",
    checksum: bool = False,
    progress: bool = True,
) -> Streamed:
    """Prunes a checkpoint of safetensors files, tensor by tensor, without the model in memory.

    Nothing is written before all is known to fit: each tensor of the checkpoint has its parameter, by the conversions
    of the model's own library, and each parameter of the plan has its tensors. Each file of the result is complete or
    not there. A run that was killed goes on with the same call, and does not write finished files again.

    Args:
        source_dir: the directory of the checkpoint.
        plan: a plan that knows its sizes, such as `record(small).plan` of a model on the meta device; or its file. Or
            the options of `analysis.plan`, as {"keep": {"params": 0.6}, "uniform": "config"}: the importance "l2" (or
            "l1") is read from the files first, in one pass.
        out_dir: the directory of the result: new, empty, or that of the same call before.
        example_inputs: of the model, for such options; None for those that it brings itself (`dummy_inputs`).
        model: the original, with or without values; None builds it from the config.
        model_class: the class of the config. One of transformers is found by its name.
        memory: the most memory for tensors, such as "2 GB"; it limits the workers.
        workers: threads that read, cut and write; by default as many as processors, at most 4.
        shard_size: the largest size of a file.
        checksum: True to write SHA256SUMS, for `sha256sum -c`, of the files on the disk. A file of a run that was
            killed is taken only if it has the sum that was noted when it was finished, else it is written again.
        progress: True for a bar, if stderr is a terminal.

    Where the config says the small model (plans of `uniform="config"`), the result has the names and the form of the
    checkpoint, and its own library loads it. Else `fxprune.from_pretrained` does, as after `save_pretrained`. A model
    without a config is loaded by `fxprune.load(file, into=original)`, of several files from their index.

    Raises `FileError` for a checkpoint that cannot be read or does not fit, and for a directory with other files;
    `PlanError` for a plan of another model, one without sizes, and one that cuts packed weights inside a block.
    """
    began = time.monotonic()
    check_directory(out_dir)
    checkpoint = open_checkpoint(source_dir)
    with public_call():
        original: nn.Module = model_of(checkpoint, model_class) if model is None else model
        if isinstance(plan, Mapping):
            plan = _planned(checkpoint, original, plan, example_inputs, progress)
        plan = plan if isinstance(plan, Plan) else Plan.load(plan)
        job = _job(checkpoint, plan, original, bytes_in("shard_size", shard_size))
    folder = Path(out_dir)
    if folder.resolve() == checkpoint.folder.resolve():
        why = "it would be replaced while it is read"
        raise FileError("source and result are one directory", at=f'"{folder}"', why=why, do="name another one")
    count = _workers(workers, memory, [output for shard in job.shards for output in shard.outputs])
    notes = FinishedFiles(folder, job.key)
    finished = notes.finished(job.shards, checksum=checksum)
    removed = remove_litter(folder)
    left = [shard for shard in job.shards if shard not in finished]
    refuse_without_space(folder, sum(shard.bytes for shard in left))
    notes.begin()
    done = sum(shard.bytes for shard in finished)
    with byte_bar("streaming", sum(shard.bytes for shard in job.shards), done, show=progress) as tell:
        write_shards(left, folder, count, tell, notes.add if checksum else lambda _: None)
    names = [shard.name for shard in job.shards]
    if checksum:
        write_text(folder / SUMS, "".join(f"{notes.sums[name]}  {name}\n" for name in names))
    left_out = _write_others(job, folder)
    os.unlink(folder / STATE)
    figures: dict[str, Any] = {**_figures(job), "workers": count, "seconds": time.monotonic() - began}
    reused, ignored = tuple(shard.name for shard in finished), (*job.names.ignored, *left_out)
    return Streamed(folder, tuple(names), reused, **figures, ignored=ignored, removed_litter=removed)


@dataclass(frozen=True, eq=False)
class _Job:
    """The work of one call. shards: the files. texts: their metadata. why: why no config says the model, or "".

    original, small: the models, without values. key: a hash of everything that decides the bytes of the result.
    """

    checkpoint: Checkpoint
    names: StoredNames
    original: nn.Module
    small: nn.Module
    shards: tuple[Shard, ...]
    texts: Mapping[str, str]
    why: str
    key: str


def _figures(job: _Job) -> dict[str, Any]:
    """The fields of `Streamed` that follow from the job alone."""
    written = sum(output.bytes for shard in job.shards for output in shard.outputs)
    read = sum(stored.bytes for stored in job.checkpoint.tensors.values())
    return {"bytes_read": read, "bytes_written": written, "config_says_it": not job.why, "why": job.why}


def _planned(checkpoint: Checkpoint, original: nn.Module, request: Any, example_inputs: Any, progress: bool) -> Plan:
    """The plan of a request, its norms read from the files."""
    shapes = {name: stored.shape for name, stored in checkpoint.tensors.items()}
    found = names_of(original, shapes, checkpoint.folder)
    total = sum(stored.bytes for stored in checkpoint.tensors.values())
    with byte_bar("scores", total, show=progress) as tell:
        return planned(checkpoint, found.parts, original, request, example_inputs, tell)


def _job(checkpoint: Checkpoint, plan: Plan, original: nn.Module, limit: int) -> _Job:
    """All that is written, known before anything is. Raises the errors of `stream`."""
    _refuse_plan(plan)
    small = rebuild(original, plan, "the plan")
    packed = packed_of(checkpoint)
    names, parts = _parts(checkpoint, packed, original, plan)
    small, gone, why = _as_config_says(small, original, checkpoint)
    kept, texts = StayingSlots(plan), {"format": "pt"}
    if why:
        _refuse_packed(packed, why)
        _refuse_without_values(small)
        text, tied = described(small, _record(plan, small))
        texts[KEY] = text
        outputs = in_parameter_names(checkpoint.tensors, parts, kept, lambda name: tied.get(name, name))
    else:
        new_names = renumbered(parts, gone)
        outputs = in_stored_names(checkpoint.tensors, parts, kept)
        outputs = [replace(output, name=new_names.get(output.name, output.name)) for output in outputs]
    outputs = [output for output in outputs if output.name not in names.ignored]
    shards = tuple(shards_of(outputs, limit, "model" if why in ("", NO_CONFIG) else "small_model", texts))
    files = [list(state) for state in checkpoint.files.items()]
    hashed = hashlib.sha256(json.dumps([data_of(plan), files, os.fspath(checkpoint.folder.resolve())]).encode())
    for shard in shards:
        hashed.update(shard.header)
    return _Job(checkpoint, names, original, small, shards, texts, why, hashed.hexdigest())


def _as_config_says(small: nn.Module, original: nn.Module, checkpoint: Checkpoint) -> tuple[nn.Module, LayersGone, str]:
    """The model, without the layers that are gone whole where a config says it; these layers; why no config says it."""
    if not has_config(original):
        return small, {}, NO_CONFIG
    try:
        fewer, gone = with_fewer_layers(small)
    except (LayersStayError, NotBuiltError, ChangedByHandError) as error:
        return small, {}, str(error)
    why = beyond_config(fewer)
    return (small, {}, why) if why else (fewer, gone, "")


def _refuse_plan(plan: Plan) -> None:
    """Raises `PlanError` for a plan that cannot be carried out on weights alone."""
    if plan.zeroed is not None or plan.biases or plan.maps:
        place = next(iter((*plan.biases, *plan.maps)), "")
        raise PlanError(
            "a plan with folded constants cannot be streamed",
            at=f'"{place}"' if place else "",
            why="the constants are computed with the whole model",
            do='make the plan with bias="prune", or transform the model in memory',
        )
    if plan.removed and not plan.sizes:
        raise PlanError(
            "the plan does not know the sizes and factors that follow from it",
            why="they are found out when a model is made smaller",
            do="transform a model on the meta device with it, and stream record(small).plan",
        )
    rescaled = next((size.at for size in plan.sizes if size.kind == "attribute" and size.name in EPSILONS), "")
    if plan.norms == "preserve" and rescaled:
        raise PlanError(
            'a plan with norms="preserve" that multiplies weights of norms cannot be streamed',
            at=f'"{rescaled}"',
            why="its weight is multiplied by sqrt(old width / new width), and no factor of the plan says so",
            do='make the plan with norms="kept", or transform the model in memory',
        )
    if reason := needs_inputs(plan):
        raise PlanError(
            "the plan cannot be streamed",
            why=f"{reason}, which follows from an analysis of the model",
            do="make the plan on the path that keeps the class, or transform the model in memory",
        )


def _parts(checkpoint: Checkpoint, packed: Packed, model: nn.Module, plan: Plan) -> tuple[StoredNames, list[Any]]:
    """The names of a checkpoint, and the parts of the parameters that stay. Raises for what finds no partner."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: stored.shape for name, stored in packed.plain.items()}
    bases = {base: base for base in packed.blocks.values()}
    stood = {b: tuple(state[b].shape) for b in bases if b in state}
    stand_ins = names_of(model, {**shapes, **stood}, checkpoint.folder)
    parts = [part for part in stand_ins.parts if part.stored not in bases]
    if missing := next((base for base in bases if base not in state), ""):
        raise FileError(f'no parameter belongs to "{missing}_blocks" of the checkpoint', do="pass model_class=")
    parts += parts_of_blocks(checkpoint, packed.blocks, bases, state)
    parts += parts_of_scales(checkpoint, packed, parts)
    structure = plan.known_structure("what it is for")
    gone = {name for one in plan.dropped for name in one.tensors} - structure.shapes.keys()
    absent = without_partner(model, structure.shapes.keys() - set(structure.outside), parts)
    if absent:
        raise FileError(
            f'the checkpoint has no "{min(absent)}"',
            at=f'"{checkpoint.folder}"',
            why=f"the plan is for a model with it; {len(absent)} such tensors are missing",
            do="load all files of the checkpoint, or pass the class that it is of (model_class=)",
        )
    scaled = {part.parameter for part in parts if part.stored in packed.scales.values()}
    for factor in plan.factors:
        if factor.tensor in scaled:
            raise PlanError(
                f'"{factor.tensor}" is packed, and cannot carry a factor of the plan',
                why="its numbers are multiplied by scales beside them",
                do="stream the checkpoint that was packed, or remove whole heads",
            )
    return stand_ins, [part for part in parts if part.parameter not in gone]


def _refuse_packed(packed: Packed, why: str) -> None:
    for name in (*packed.blocks, *packed.scales):
        raise PlanError(
            "packed weights need a plan that the config can say",
            at=f'"{name}"',
            why=f"no other program unpacks them, and no config says the small model: {why}",
            do='make the plan with uniform="config", or stream the checkpoint that was packed',
        )


def _record(plan: Plan, small: nn.Module) -> Record:
    """The record of a model that was never whole in memory."""
    before, after = plan.known_structure("what it is for").shapes, shapes_after(plan)
    buffers = {name: tuple(b.shape) for name, b in small.named_buffers(remove_duplicate=False)}
    after |= {name: buffers[name] for name in buffers if name not in after}
    text = "the weights were streamed, and nothing was compared"
    return Record(plan.path, plan.removed, False, before, after, (*plan.reasons, text), plan=plan, norms=plan.norms)


def _workers(workers: int | None, memory: int | str | None, outputs: list[Output]) -> int:
    """The number of threads. Raises `InputError` for a memory that is too small for one."""
    if workers is not None and workers < 1:
        raise InputError(
            "workers must be at least 1", at=f"stream(workers={workers})", do="pass workers=1 or more, or leave it out"
        )
    count = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    if memory is None:
        return count
    limit = bytes_in("memory", memory)
    need = max((memory_of(piece) for output in outputs for piece in output.pieces), default=1)
    if limit < need:
        raise InputError(
            f"memory is too small: one worker needs {need} bytes",
            at=f"stream(memory={memory!r})",
            do="give more memory, or take fewer workers",
        )
    return min(count, limit // need)


def _write_others(job: _Job, folder: Path) -> list[str]:
    """Write what stands beside the weights, and return what is left out.

    The config is the last, so that nothing loads a result that is not complete.
    """
    others, left_out = others_of(job.checkpoint, folder)
    copy_others(job.checkpoint.folder, folder, others)
    if len(job.shards) > 1:
        texts = {k: v for k, v in job.texts.items() if k != "format"}
        write_text(folder / (INDEX if job.why in ("", NO_CONFIG) else WEIGHTS_INDEX), index_of(job.shards, texts))
    if not job.why:
        write_plain(new_config(job.checkpoint, job.original, job.small), folder)
    elif job.why != NO_CONFIG:
        guard(job.checkpoint, job.original, folder, job.why)
    return left_out


def _refuse_without_values(small: nn.Module) -> None:
    """Raises `FileError` for a buffer that the result needs, that no file has, and that has no values."""
    state = small.state_dict(keep_vars=True)
    for name, buffer in small.named_buffers(remove_duplicate=False):
        if name not in state and buffer.is_meta:
            raise FileError(
                f'the buffer "{name}" of the model has no values',
                why="no config says the small model, and the checkpoint has not this buffer",
                do="pass a model whose buffers have values, or leave out `model` where there is a config.json",
            )
