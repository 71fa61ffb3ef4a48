"""Files are written completely or not at all, and everything in them is checked."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.artifacts import load, save, weights
from fxprune.artifacts import safetensors_file as layout
from fxprune.errors import FileError, MissingFileError
from fxprune.files import replacing, write_text
from tests.artifacts.trips import Plain, Tied, differences, equal, image, pruned, run, seeded, tensors
from tests.planning.test_plans import FLIPS, VALUES, mutated

MUTANTS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def words() -> Tensor:
    return torch.randint(0, 11, (2, 5))


# -- whole or not at all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        *(("small.pt", "torch.load"), ("small.PTH", "torch.load"), ("net.ckpt", "torch.load")),
        *(("net.pt2", "torch.export.load"), ("net.onnx", "onnxruntime")),
    ],
)
def test_a_file_named_as_another_format_is_warned_of_and_written(tmp_path: Path, name: str, reader: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    small = fxprune.transform(model, torch.randn(2, 4), ratio=0.5)
    with pytest.warns(UserWarning, match=rf"safetensors, which {reader} does not read: name it .safetensors") as caught:
        save(small, tmp_path / name)
    assert caught[0].filename == __file__
    assert fxprune.record(load(tmp_path / name, into=model)) == fxprune.record(small)
    save(small, tmp_path / "small.safetensors")
    save(small, tmp_path / "small")


def test_a_writer_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_save_that_fails_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, path = pruned(seeded(Plain, 1), image()), tmp_path / "small.safetensors"
    save(small, path)
    old = path.read_bytes()
    calls = []

    def failing(tensor: Tensor) -> Any:
        calls.append(tensor)
        if len(calls) > 3:
            raise OSError("no space left on device")
        return b"\x00" * tensor.numel() * tensor.element_size()

    monkeypatch.setattr(layout, "raw_bytes", failing)
    with pytest.raises(OSError, match="no space left"):
        save(small, path)
    assert len(calls) == 4
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    program = f"""
        import sys
        from fxprune.files import replacing
        with replacing({os.fspath(path)!r}) as file:
            file.write(b"half of the ne")
            file.flush()
            print("written", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [p for p in tmp_path.iterdir() if p != path]
    assert [p.name.startswith(".a.txt.") and p.name.endswith(".tmp") for p in left] == [True]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = {"a" * 200_000, "b" * 300_000}
    write_text(path, min(texts))
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for text in sorted(texts) * 20:
        write_text(path, text)
    done.set()
    reader.join()
    assert seen <= texts


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new.txt", "a")
        (tmp_path / "ordinary.txt").write_text("a")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new.txt", "ordinary.txt")]
    assert modes == [0o640, 0o640]
    (tmp_path / "new.txt").chmod(0o604)
    write_text(tmp_path / "new.txt", "b")
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == 0o604


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(Path("there") / "target.txt")
    (tmp_path / "dangling.txt").symlink_to(Path("there") / "later.txt")
    write_text(tmp_path / "link.txt", "new")
    write_text(tmp_path / "dangling.txt", "made")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "target.txt").read_text() == "new"
    assert (tmp_path / "there" / "later.txt").read_text() == "made"
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["later.txt", "target.txt"]


def test_save_refuses_places_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="it is a directory"):
        write_text(tmp_path, "a")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no folder" / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    write_text("relative.txt", "a")
    assert [p.name for p in tmp_path.iterdir()] == ["relative.txt"]


# -- what cannot be saved ---------------------------------------------------------------------------------------


class Extra(Plain):
    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def saved_badly(change: Callable[[nn.Module], Any], folder: Path, make: Any = Plain) -> str:
    small = pruned(seeded(make, 1), image(), path="eager")
    small = change(small) or small
    with pytest.raises(fxprune.FxpruneError) as caught:
        save(small, folder / "small.safetensors")
    assert list(folder.iterdir()) == []
    return str(caught.value)


def test_save_refuses_before_anything_is_written(tmp_path: Path) -> None:
    assert "no record" in saved_badly(lambda m: Plain(), tmp_path)
    assert "only tensors are stored without pickle" in saved_badly(lambda m: None, tmp_path, Extra)
    assert "on the meta device" in saved_badly(lambda m: m.to("meta"), tmp_path)
    text = saved_badly(lambda m: m.register_buffer("odd", torch.zeros(2, dtype=torch.complex128)), tmp_path)
    assert "safetensors knows no torch.complex128" in text
    text = saved_badly(lambda m: m.register_buffer("odd", torch.eye(2).to_sparse()), tmp_path)
    assert "safetensors knows no torch.sparse_coo" in text
    text = saved_badly(lambda m: setattr(m, "head", nn.Linear(8, 9)), tmp_path)
    assert 'the model is not what its plan leaves\n  at   "head.weight" has shape (9, 8)' in text
    assert "the plan leaves (5, 8)" in text
    assert "record(first).then(record(second))" in text


def test_a_header_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "HEADER", 1000)
    assert "a header has at most 1000" in saved_badly(lambda m: None, tmp_path)


# -- what cannot be loaded --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("files") / "small.safetensors"
    torch.manual_seed(0)
    save(pruned(seeded(Tied, 1), words(), path="eager"), path)
    return path.read_bytes()


def taken_apart(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, our metadata in it, and the bytes of the tensors."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["fxprune"]), content[8 + length :]


def put_together(header: Any, data: Any, rest: bytes) -> bytes:
    if data is not None:
        header = {**header, "__metadata__": {**header["__metadata__"], "fxprune": json.dumps(data)}}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def loaded_badly(content: bytes, folder: Path, **options: Any) -> str:
    """The error of loading this file; checks that the model it was loaded into has not changed."""
    path = folder / "wrong.safetensors"
    path.write_bytes(content)
    into = seeded(Tied, 2)
    before = {name: tensor.clone() for name, tensor in tensors(into).items()}
    with pytest.raises(fxprune.FxpruneError) as caught:
        load(path, into=into, **options)
    assert all(equal(tensor, before[name]) for name, tensor in tensors(into).items())
    assert not hasattr(into, "fxprune_record")
    return str(caught.value)


Change = Callable[[dict[str, Any], dict[str, Any], bytes], bytes]


def entry(name: str, **values: Any) -> Change:
    return lambda h, d, r: put_together({**h, name: {**h[name], **values}}, None, r)


def metadata(*path: Any, value: Any) -> Change:
    def change(header: dict[str, Any], data: dict[str, Any], rest: bytes) -> bytes:
        node = data
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return put_together(header, data, rest)

    return change


def without(name: str, header: dict[str, Any], data: Any, rest: bytes) -> bytes:
    """The file without one tensor, the offsets of the others right again."""
    begin, end = header[name]["data_offsets"]
    made = {}
    for other, value in header.items():
        if other not in (name, "__metadata__"):
            offsets = [o - (end - begin if o >= end else 0) for o in value["data_offsets"]]
            value = {**value, "data_offsets": offsets}
        made[other] = value
    made.pop(name)
    return put_together(made, data, rest[:begin] + rest[end:])


def renamed(old: str, new: str) -> Change:
    return lambda h, d, r: put_together({new if k == old else k: v for k, v in h.items()}, None, r)


BUFFER = {"dtype": "F32", "shape": [4], "sha256": ""}

WRONG: dict[str, tuple[Change, list[str]]] = {
    "empty": (lambda h, d, r: b"", ["no safetensors file, or it is cut off"]),
    "short": (lambda h, d, r: b"\x02\x00", ["no safetensors file, or it is cut off"]),
    "foreign": (lambda h, d, r: b"PK\x03\x04" + b"\x00" * 100, ["is a file of torch.save", "that `fxprune.save`"]),
    "header of 2^63 bytes": (lambda h, d, r: (2**63).to_bytes(8, "little") + b"{}", ["cut off", "does not fit"]),
    "cut in the header": (lambda h, d, r: put_together(h, None, r)[:500], ["cut off"]),
    "cut in a tensor": (lambda h, d, r: put_together(h, None, r[:-1]), ["is not what it should be"]),
    "more than tensors": (lambda h, d, r: put_together(h, None, r + b"\0" * 8), ["the tensors end at byte"]),
    "no JSON": (lambda h, d, r: put_together(b"{'a': 1}", None, r), ["it is no JSON"]),
    "a list": (lambda h, d, r: put_together(b"[1, 2]", None, b""), ["must be an object"]),
    "twice": (lambda h, d, r: put_together(b'{"a": 1, "a": 2}', None, b""), ['the key "a" occurs twice']),
    "no metadata": (
        lambda h, d, r: put_together({k: v for k, v in h.items() if k != "__metadata__"}, None, r),
        ["not written by fxprune", "safetensors.torch.load_file"],
    ),
    "metadata of numbers": (
        lambda h, d, r: put_together({**h, "__metadata__": {"a": 1}}, None, r),
        ["must be a string"],
    ),
    "unknown dtype": (entry("inner.weight", dtype="F128"), ["inner.weight.dtype", "must be one of"]),
    "shape": (entry("inner.weight", shape=[4, 7]), ["inner.weight", "its shape and dtype take 112 bytes"]),
    "negative shape": (entry("inner.weight", shape=[-4, -8]), ["must be an integer from 0"]),
    "shape of bools": (entry("inner.weight", shape=[True]), ["must be an integer"]),
    "huge shape": (entry("inner.weight", shape=[2**40] * 60), ["its shape and dtype take"]),
    "other dtype of one size": (entry("inner.weight", dtype="I32"), ["torch.int32", "the model has torch.float32"]),
    "overlap": (
        lambda h, d, r: put_together({**h, "out.weight": {**h["out.weight"], "data_offsets": [0, 128]}}, None, r),
        ["is not what it should be"],
    ),
    "backwards": (
        lambda h, d, r: put_together({**h, "out.bias": {**h["out.bias"], "data_offsets": [64, 32]}}, None, r),
        ["its shape and dtype take 20 bytes"],
    ),
    "three offsets": (entry("out.bias", data_offsets=[0, 1, 2]), ["the first byte and the one after the last"]),
    "unknown key": (entry("out.bias", stride=[1]), ['nothing is known of the key "stride"']),
    "missing tensor": (lambda h, d, r: without("out.bias", h, d, r), ['"out.bias"', "in the file it is missing"]),
    "renamed tensor": (renamed("out.bias", "out.bins"), ['the model has no "out.bins"; did you mean "out.bias"?']),
    "tied to nothing": (metadata("tied", value={}), ['tied to "embed.weight"', "in the file it is missing"]),
    "tied otherwise": (metadata("tied", value={"head.weight": "out.weight"}), ['it is tied to "out.weight"']),
    "tied and stored": (metadata("tied", "out.bias", value="inner.bias"), ["it is a tensor of its own"]),
    "format": (metadata("format", value="other"), ['there is no "format": "fxprune weights"']),
    "version": (metadata("version", value=2), ["reads version 1"]),
    "no plan": (metadata("plan", value=None), ["no plan of fxprune"]),
    "another rung": (metadata("plan", "path", value="hooks"), ["needs example inputs", 'made by "hooks"']),
    "a bias": (
        metadata("plan", "biases", value=["head"]),
        ['"head", which takes constants up', 'there is no "head.bias"'],
    ),
    "a literal": (
        metadata("plan", "sizes", 0, value={"kind": "argument", "at": "view", "name": "args[1]", "old": 8, "new": 4}),
        ["needs example inputs", "%view args[1]: 8 -> 4"],
    ),
    "a class": (
        metadata("plan", "sizes", 0, value={"kind": "class", "at": "inner", "name": "", "old": "a.B", "new": "c.D"}),
        ["needs example inputs", "the class of a layer changes (inner: a.B -> c.D)"],
    ),
    "size of nothing": (metadata("plan", "sizes", 0, "at", value="inmer"), ["there is no such number"]),
    "hidden attribute": (metadata("plan", "sizes", 0, "name", value="_modules"), ["there is no such number"]),
    "size from elsewhere": (metadata("plan", "sizes", 0, "old", value=99), ["in this model"]),
    "size of another kind": (metadata("plan", "sizes", 0, "new", value=4.0), ["a number becomes one of its kind"]),
    "miscounted": (metadata("plan", "sizes", 0, "new", value=3), ["contradicts itself"]),
    "plan and tensors": (
        metadata("plan", "tensors", "out.bias", value={"shape": [8], "removed": {"0": "7"}, "kept": {"0": "0-6"}}),
        ["the plan in it leaves shape (7,)"],
    ),
    "record": (metadata("record", "exact", value=1), ["record.exact", "true or false"]),
    "record without": (metadata("record", value={}), ['the key "exact" is missing']),
    "norms": (metadata("record", "norms", value="both"), ["record.norms"]),
    "buffer of nothing": (metadata("buffers", "gone", value=BUFFER), ['no buffer "gone" outside state_dict']),
    "buffer in state": (metadata("buffers", "order", value=BUFFER), ['no buffer "order" outside state_dict']),
    "buffer's numbers": (
        metadata("buffers", "gain", "data", value=base64.b64encode(b"\0" * 16).decode()),
        ["its numbers are not those that were saved"],
    ),
    "buffer's length": (metadata("buffers", "gain", "data", value="AAAA"), ["4 numbers of torch.float32 are needed"]),
    "buffer's text": (metadata("buffers", "gain", "data", value="\N{SNOWMAN}"), ["it is no base64"]),
    "buffer's shape": (metadata("buffers", "gain", "shape", value=[5]), ["the model has shape (4,)"]),
    "buffer's dtype": (metadata("buffers", "gain", "dtype", value="I32"), ["the model has torch.float32"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    change, fragments = WRONG[name]
    text = loaded_badly(change(*taken_apart(content)), tmp_path)
    assert [f for f in fragments if f not in text] == [], text
    assert str(tmp_path / "wrong.safetensors") in text or "needs example inputs" in text


def test_the_helpers_give_the_file_back(content: bytes, tmp_path: Path) -> None:
    header, data, rest = taken_apart(content)
    (tmp_path / "same.safetensors").write_bytes(put_together(header, data, rest))
    again = load(tmp_path / "same.safetensors", into=seeded(Tied, 2))
    assert run(again, words())[0].isfinite().all()


def test_sizes_are_compared_with_those_of_a_rewrite(content: bytes, tmp_path: Path) -> None:
    change = metadata("plan", "sizes", 0, "new", value=3)
    text = loaded_badly(change(*taken_apart(content)), tmp_path, example_inputs=words())
    assert "a rewrite of this model by the plan gives" in text


def test_wrong_models_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_bytes(content)
    with pytest.raises(fxprune.PlanError) as caught:
        load(path, into=seeded(Plain, 1))
    assert 'there is "order" of shape (6,)' in str(caught.value)
    assert "load into the original architecture, not into the small one or one of another class" in str(caught.value)
    with pytest.raises(fxprune.PlanError, match='"order" has shape'):
        load(path, into=load(path, into=seeded(Tied, 1)))
    with pytest.raises(fxprune.PlanError, match="kept its class"):
        load(path, into=torch.fx.symbolic_trace(seeded(Tied, 1)))
    with pytest.raises(FileError, match="into must be a model, not dict"):
        load(path, into={})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", into=seeded(Tied, 1))
    with pytest.raises(FileError, match="no ordinary file"):
        load(tmp_path, into=seeded(Tied, 1))


def test_an_untied_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "small.safetensors").write_bytes(content)
    into = seeded(Tied, 1)
    into.get_submodule("head").weight = nn.Parameter(torch.zeros(11, 8))
    with pytest.raises(FileError, match=r'it is a tensor of its own, in the file it is tied to "embed.weight"'):
        load(tmp_path / "small.safetensors", into=into)


def test_large_buffers_are_only_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "INLINE", 8)
    small, path = pruned(seeded(Tied, 1), words(), path="eager"), tmp_path / "small.safetensors"
    save(small, path)
    stored = taken_apart(path.read_bytes())[1]["buffers"]["gain"]
    assert sorted(stored) == ["dtype", "sha256", "shape"]
    assert stored["sha256"] == hashlib.sha256(small.get_buffer("gain").numpy().tobytes()).hexdigest()
    assert differences(small, load(path, into=seeded(Tied, 2)), words()) == []
    other = seeded(Tied, 2)
    other.get_buffer("gain").mul_(2)
    with pytest.raises(FileError, match="not those that were saved, and they are not stored"):
        load(path, into=other)
    with torch.device("meta"):
        weightless = Tied().eval()
    with pytest.raises(FileError, match="a model on the meta device has no values of its own"):
        load(path, into=weightless)


# -- mutants -----------------------------------------------------------------------------------------------------


def check_mutant(content: bytes, folder: Path) -> bool:
    """Loads a file: True if the result runs and has the shapes of its plan; False if fxprune raises its own error."""
    path = folder / "mutant.safetensors"
    path.write_bytes(content)
    into = seeded(Plain, 2)
    before = {name: tensor.clone() for name, tensor in tensors(into).items()}
    try:
        again = load(path, into=into)
    except fxprune.FxpruneError:
        again = None
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(into).items())
    if again is not None:
        made = fxprune.record(again)
        after = {n: tuple(t.shape) for n, t in again.state_dict().items()}
        assert all(made.plan.structure.shapes[n][d] - len(gone) == after[n][d]
                   for n, dims in made.removed.items() for d, gone in dims.items())  # fmt: skip
        assert run(again, image())[0].shape == (2, 5)
    return again is not None


def mutant_test(examples: int) -> Callable[..., None]:
    @settings(MUTANTS, max_examples=examples)
    @given(where=st.sampled_from(("header", "data", "plan", "bytes")), seed=st.integers(0, 2**32), value=VALUES,
           flips=FLIPS, cut=st.integers(0, 50))  # fmt: skip
    def test(where: str, seed: int, value: Any, flips: Any, cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.getbasetemp()
        original = folder / "plain.safetensors"
        if not original.exists():
            save(pruned(seeded(Plain, 1), image(), path="eager"), original)
        content, choose = original.read_bytes(), random.Random(seed)
        header, data, rest = taken_apart(content)
        if where == "header":
            content = put_together(mutated(header, choose, value), None, rest)
        elif where == "data":
            content = put_together(header, mutated(data, choose, value), rest)
        elif where == "plan":
            content = put_together(header, {**data, "plan": mutated(data["plan"], choose, value)}, rest)
        else:
            changed = bytearray(content[: len(content) - cut if cut < 25 else None])
            for place, byte in flips:
                changed[place % (len(content) - len(rest))] = byte
            content = bytes(changed)
        check_mutant(content, folder)

    return test


test_mutants = mutant_test(200)
test_many_mutants = pytest.mark.slow(mutant_test(2000))


def test_the_check_of_mutants_sees_a_file_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save(pruned(seeded(Plain, 1), image(), path="eager"), path)
    assert check_mutant(path.read_bytes(), tmp_path)
    assert not check_mutant(path.read_bytes()[:-1], tmp_path)


def test_the_check_of_mutants_fails_where_into_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plain.safetensors"
    save(pruned(seeded(Plain, 1), image(), path="eager"), path)
    from tests.artifacts import test_files

    def load_into(path: Path, *, into: nn.Module) -> nn.Module:
        with torch.no_grad():
            into.get_submodule("head").bias.add_(1.0)
        return load(path, into=into)

    monkeypatch.setattr(test_files, "load", load_into)
    with pytest.raises(AssertionError):
        test_files.check_mutant(path.read_bytes(), tmp_path)


@pytest.mark.parametrize("read", [lambda path: load(path, into=nn.Linear(2, 2)), weights.record_in])
@pytest.mark.parametrize("name", ["missing.safetensors", "missing.safetensors.index.json"])
def test_a_model_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path, read: Any, name: str) -> None:
    with pytest.raises(MissingFileError, match=f'there is no file ".*{name}"') as caught:
        read(tmp_path / name)
    assert caught.value.do == "check the path"
