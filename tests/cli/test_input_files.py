"""Example inputs from files: the arguments they become, and files that hold something else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxprune.cli import main
from fxprune.cli.inputs import example, filled
from fxprune.errors import FileError


class Three(nn.Module):
    def forward(self, a, b, c=None):
        return a


A, B = torch.arange(6).view(2, 3), torch.linspace(0, 1, 4)


def made(*words):
    return filled([example(str(word)) for word in words], Three(), 0, torch.device("cpu"))


def same(one, other):
    return type(one) is type(other) and torch.equal(one, other)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth", ".safetensors"])
def test_named_tensors_are_keyword_arguments(suffix, tmp_path):
    path, content = tmp_path / f"batch{suffix}", {"b": B, "a": A}
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in content.items()})
    elif suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    found = made(path)
    assert found.keys() == {"a", "b"}
    assert same(found["a"], A)
    assert same(found["b"], B)


def test_lists_and_unnamed_arrays_are_positional_arguments(tmp_path):
    torch.save([A, B], tmp_path / "list.pt")
    torch.save(A, tmp_path / "one.pt")
    np.savez(tmp_path / "arrays.npz", A.numpy(), B.numpy())
    for first, second in (made(tmp_path / "list.pt"), made(tmp_path / "arrays.npz")):
        assert same(first, A)
        assert same(second, B)
    [one] = made(tmp_path / "one.pt")
    assert same(one, A)


def test_files_stand_beside_shapes(tmp_path):
    torch.save(A, tmp_path / "one.pt")
    torch.save({"c": [A, B]}, tmp_path / "more.pt")
    found = made(tmp_path / "one.pt", "b=3", tmp_path / "more.pt")
    assert list(found) == ["a", "b", "c"]
    assert same(found["c"][1], B)


def test_no_code_in_a_file_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("it ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save(Evil(), tmp_path / "evil2.pt")
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object))
    for name in ("evil.pt", "evil2.pt", "evil.npz"):
        with pytest.raises(FileError):
            made(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_files_of_another_kind_are_refused(suffix, tmp_path):
    path = tmp_path / f"batch{suffix}"
    for content in (b"", b"nothing of the kind", b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(FileError, match="batch"):
            made(path)


def test_texts_are_no_tensors(tmp_path):
    np.savez(tmp_path / "words.npz", a=np.array(["x"]))
    with pytest.raises(FileError, match=r'"a" in ".*words\.npz" is no tensor'):
        made(tmp_path / "words.npz")


def test_a_missing_file_is_said_before_the_model_is_made(capsys, tmp_path):
    assert main(["inspect", "tests.cli.models:net", "--input", str(tmp_path / "batch.npz")]) == 1
    err = capsys.readouterr().err
    assert "there is no file" in err
    assert "making" not in err


def test_the_model_runs_on_it(capsys, tmp_path):
    np.savez(tmp_path / "batch.npz", np.ones((1, 3, 8, 8), np.float32))
    assert main(["inspect", "tests.cli.models:net", "--input", str(tmp_path / "batch.npz"), "-q"]) == 0
    assert "conv1" in capsys.readouterr().out
