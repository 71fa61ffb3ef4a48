"""The report on a repair in the record, in pickles and files; `verify` on models that were repaired or trained."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import main
from tests.repair.test_data import small_of
from tests.repair.test_models import batches, mlp

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))


def models() -> tuple[nn.Module, nn.Module, nn.Module]:
    """An original, its small model, and that repaired."""
    torch.manual_seed(0)
    net, data = mlp(), batches(6)
    small = small_of(net, data)
    return net, small, fxprune.repair(small, net, data)


# -- where the report is ---------------------------------------------------------------------------------------


def test_the_report_of_a_record_tells_of_the_repair() -> None:
    _, small, made = models()
    done = fxprune.record(made).repair
    assert done is not None
    text, markdown = (fxprune.record(made).report(format) for format in ("text", "markdown"))
    told = json.loads(fxprune.record(made).report("json"))["repair"]
    for report in (text, markdown):
        assert f"outputs: {done.before:.2e}, after the repair {done.after:.2e}" in report
        assert "2.weight" in report
        assert "relative error against the reference before the repair: " in report
    assert "| 2.weight" in markdown
    assert told["mode"] == "weights"
    assert (told["before"], told["after"]) == (done.before, done.after)
    layer = done.layers["2.weight"]
    assert told["layers"][1] == {"name": "2.weight", "before": layer.before, "after": layer.after, "ridge": layer.ridge}
    assert "repair" not in fxprune.record(small).report()
    assert json.loads(fxprune.record(small).report("json"))["repair"] is None


def test_layers_that_were_left_stand_in_order_and_those_of_equal_blocks_in_one_line() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm
    blocks = nn.Sequential(*(nn.Sequential(normed(nn.Linear(20, 20)), nn.Tanh()) for _ in range(4)))
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), blocks, nn.Linear(20, 4)).eval()
    small = fxprune.transform(net, X, ratio=0.5)
    text = fxprune.record(fxprune.repair(small, net, batches(6))).report()
    lines = [line.partition(":")[0] for line in text.splitlines() if "left as it is" in line]
    assert lines == [f"2.0-3.0.parametrizations.weight.original{number}" for number in (1, 0)]


def test_repaired_layers_of_repeated_blocks_share_a_row() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(20, 20), nn.Tanh()) for _ in range(4)))
    uneven = nn.Sequential(*(nn.Sequential(nn.Linear(20, n), nn.Tanh(), nn.Linear(n, 20)) for n in (9, 12)))
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), blocks, nn.Linear(20, 20), uneven, nn.Linear(20, 4)).eval()
    made = fxprune.record(fxprune.repair(fxprune.transform(net, X, ratio=0.5), net, batches(6)))
    assert made.repair is not None
    layers = [made.repair.layers[f"2.{number}.0.weight"] for number in range(4)]
    table = made.report().partition("repair:\n")[2].splitlines()
    assert [line.split()[0] for line in table[2:5]] == ["0.weight", "2.0-3.0.weight", "3.weight"]
    for errors in ([layer.before for layer in layers], [layer.after for layer in layers]):
        assert f"{min(errors):.2e} to {max(errors):.2e}" in table[3]
    worst = max(made.repair.layers, key=lambda name: made.repair.layers[name].after if made.repair else 0)
    assert [line.split()[0] for line in table[5:9]] == ["4.0.0.weight", "4.0.2.weight", "4.1.0.weight", "4.1.2.weight"]
    assert table[-1] == (
        f"the largest error of a layer after the repair: {worst}, {made.repair.layers[worst].after:.2e}"
    )


def test_layers_that_were_left_are_in_the_report() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(20, 4))).eval()
    made = fxprune.repair(small_of(net, [X]), net, batches(6))
    assert (
        "original1: left as it is; forward multiplies by what aten::_weight_norm_interface"
        in fxprune.record(made).report()
    )


def test_pickles_and_copies_keep_the_report() -> None:
    _, _, made = models()
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for one in (again, copy.deepcopy(made)):
        assert fxprune.record(one) == fxprune.record(made)


def test_files_hold_the_repaired_weights_and_the_report(tmp_path: Path) -> None:
    net, _, made = models()
    fxprune.save(made, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", into=net)
    assert fxprune.record(again).repair == fxprune.record(made).repair
    assert all(map(torch.equal, made.state_dict().values(), again.state_dict().values()))


def test_records_that_know_nothing_of_repairs_are_read() -> None:
    _, small, _ = models()
    from fxprune._record import holder

    data = json.loads(holder.text_of(fxprune.record(small)))
    data["record"].pop("weights")
    made = holder.record_from(json.dumps(data))
    assert (made.repair, made.weights) == (None, "")


def test_two_records_have_the_second_repair() -> None:
    net, small, made = models()
    again = fxprune.transform(made, X, ratio=0.5, repair=batches(6))
    both = fxprune.record(made).then(fxprune.record(again))
    assert both.repair == fxprune.record(again).repair
    assert both.repair != fxprune.record(made).repair
    assert both.weights == fxprune.record(again).weights
    assert small is not made
    assert net(X).shape == again(X).shape


# -- verify and export -----------------------------------------------------------------------------------------


def trained(small: nn.Module) -> nn.Module:
    made = copy.deepcopy(small)
    optimizer = torch.optim.AdamW(made.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        made(X).square().mean().backward()
        optimizer.step()
    return made


@pytest.mark.parametrize("path", ["eager", "fx", "export", "hooks"])
@pytest.mark.parametrize("how", ["repaired", "trained"])
def test_verify_proves_the_plan_with_the_weights_of_the_original(how: str, path: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.Flatten())
    data = batches(3, 6, 6)
    small = small_of(net.eval(), data, path=path)
    made = fxprune.repair(small, net, data) if how == "repaired" else copy.deepcopy(small)
    if how == "trained":
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    state = copy.deepcopy(made.state_dict())
    with pytest.warns(fxprune.OtherWeightsWarning, match=f"since it was {how}.*tensors differ, such as"):
        assert fxprune.verify(net, made, data[0]) < 1e-9
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.OtherWeightsWarning)
        assert fxprune.verify(net, small, data[0]) < 1e-9


def test_verify_still_finds_what_is_wrong_in_a_trained_model() -> None:
    net, small, _ = models()
    made = trained(small)
    made[1] = nn.ReLU()
    with pytest.warns(fxprune.OtherWeightsWarning):
        assert fxprune.verify(net, made, X) > 1e-3


def test_a_repaired_model_that_was_trained_is_told_with_one_tensor_that_no_repair_changes() -> None:
    net, _, made = models()
    with pytest.warns(fxprune.OtherWeightsWarning) as caught:
        fxprune.verify(net, trained(made), X)
    text = str(caught[0].message)
    assert re.search(
        r': 4 of 4 tensors differ. The repair can have changed 2 of them, but not "0.\w+" and others: ', text
    )
    assert text.count('"') == 2


def test_a_single_wrong_number_and_another_original_are_no_training() -> None:
    net, small, _ = models()
    torch.manual_seed(5)
    with pytest.warns(fxprune.OtherWeightsWarning, match="made from other weights than those of this model") as caught:
        assert fxprune.verify(mlp(), small, X) > 1e-3
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.OtherWeightsWarning)
        spoiled = copy.deepcopy(small)
        with torch.no_grad():
            spoiled.get_parameter("2.weight")[0, 0] += 1
        assert fxprune.verify(net, spoiled, X) > 1e-3


def test_an_export_is_compared_with_the_repaired_model(tmp_path: Path) -> None:
    _, _, made = models()
    assert (fxprune.export(made, tmp_path / "net.pt2", X).error or 0) < 1e-5


def test_the_command_line_verifies_a_repaired_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, _, made = models()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    fxprune.save(made, tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    words: list[Any] = ["verify", "tests.repair.test_models:mlp", "small.safetensors", "--input", "8x6"]
    assert main([*words, "--weights", "net.pt"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("right: relative error")
    assert "warning: the weights of the small model are not those of the original, since it was repaired" in said.err


@pytest.mark.parametrize("options", [{"mode": "weights"}, {"mode": "outputs", "steps": 5}], ids=["weights", "outputs"])
def test_a_repaired_model_is_exported_with_its_own_numbers(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, data = mlp(), batches(6)
    small = small_of(net, data)
    made = fxprune.repair(small, net, data, **options)
    file = tmp_path / "made.onnx"
    fxprune.export(made, file, X)
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(got, made(X))
        assert not torch.allclose(got, small(X), atol=1e-3)
