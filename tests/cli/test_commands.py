"""Commands give the same results as the functions of the package. They run in this process, which saves imports."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

import fxprune
from fxprune.cli import main
from tests.cli import models
from tests.support import randomise, torchvision

NET = ("tests.cli.models:net", "--input", "2x3x8x8")
NORMED = ("tests.cli.models:normed", "--input", "2x7:int64<50", "--input", "scale=2x7x1")


def seeded(make, seed=0):
    """The model as the command line makes it."""
    torch.manual_seed(seed)
    return make().eval()


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64).float()


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (2, 7), generator=generator)
    return {"ids": ids, "scale": torch.randn(2, 7, 1, generator=generator, dtype=torch.float64).float()}


def line():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


MODELS = {
    "net": (NET, models.net, image),
    "normed": (NORMED, models.normed, tokens),
    "dead": (("tests.cli.models:dead", "--input", "2x4"), models.dead, line),
    "staged": (("tests.cli.models:staged", "--input", "2x4"), models.staged, line),
}

OPTIONS = {
    "ratio": ("net", ["--ratio", "0.5"], {"ratio": 0.5}),
    "glob": ("net", ["--ratio", "conv2=0.75"], {"ratio": {"conv2": 0.75}}),
    "globs": ("net", ["-r", "conv2=0.75", "-r", "conv1*=0.25"], {"ratio": {"conv2": 0.75, "conv1*": 0.25}}),
    "ignore": ("net", ["--ratio", "0.5", "--ignore", "conv1", "--ignore", "head"], {"ratio": 0.5, "ignore": ["conv1"]}),
    "l1": ("net", ["--ratio", "0.4", "--importance", "l1"], {"ratio": 0.4, "importance": "l1"}),
    "keep": ("net", ["--keep", "macs=0.5", "-k", "params=4k"], {"keep": {"macs": 0.5, "params": "4k"}}),
    "scope": ("net", ["--keep", "bytes=9000", "--scope", "global"], {"keep": {"bytes": 9000}, "scope": "global"}),
    "counts": ("net", ["--counts", "conv1=5"], {"counts": {"conv1": 5}}),
    "outputs": ("staged", ["--ratio", "0.5", "--outputs", "boxes"], {"ratio": 0.5, "outputs": ["boxes"]}),
    "random": (
        "net",
        ["--ratio", "0.5", "--importance", "random", "--seed", "7"],
        {"ratio": 0.5, "importance": "random", "seed": 7},
    ),
    "round": ("net", ["--ratio", "0.3", "--round-to", "8"], {"ratio": 0.3, "round_to": 8}),
    "path": ("net", ["--ratio", "0.5", "--path", "export"], {"ratio": 0.5, "path": "export"}),
    "prefer": ("net", ["--ratio", "0.5", "--prefer", "class"], {"ratio": 0.5, "prefer": "class"}),
    "kept": ("normed", ["--ratio", "0.5"], {"ratio": 0.5}),
    "exact": ("normed", ["--ratio", "0.5", "--exact"], {"ratio": 0.5, "exact": True}),
    "preserve": ("normed", ["--ratio", "0.5", "--norms", "preserve"], {"ratio": 0.5, "norms": "preserve"}),
    "fold": ("net", ["--ratio", "0.5", "--bias", "fold"], {"ratio": 0.5, "bias": "fold"}),
    "zeros": ("dead", ["--masks", "zeros"], {"masks": "zeros"}),
    "zeros pruned": ("dead", ["--masks", "zeros", "--bias", "prune"], {"masks": "zeros", "bias": "prune"}),
}


def run(capsys, *words):
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


@pytest.mark.parametrize("case", OPTIONS)
def test_prune_does_what_transform_does(case, tmp_path, capsys):
    name, words, options = OPTIONS[case]
    model, make, inputs = MODELS[name]
    seed = options.get("seed", 0)
    small, plan = tmp_path / "small.safetensors", tmp_path / "plan.json"
    code, out, _ = run(capsys, "prune", *model, *words, "-o", small, "--save-plan", plan, "--json")
    assert code == 0
    original = seeded(make, seed)
    expected = fxprune.transform(original, inputs(seed) if seed else inputs(), **options)
    record = fxprune.record(expected)
    assert record.removed
    assert fxprune.Plan.load(plan) == record.plan
    told = json.loads(out)
    assert told["files"] == {"output": str(small), "plan": str(plan)}
    assert (told["path"], told["exact"], told["norms"]) == (record.path, record.exact, record.norms)
    assert told["params"] == {"before": record.cost[0].params, "after": record.cost[1].params}
    assert told["error"] < 1e-12
    ours, theirs = load_file(small), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    code, out, _ = run(capsys, "verify", *model, small, "--seed", seed)
    assert (code, out[:6]) == (0, "right:")


def test_a_plan_does_the_same_to_other_weights(tmp_path, capsys):
    small, plan, again = tmp_path / "a.safetensors", tmp_path / "plan.json", tmp_path / "b.safetensors"
    assert run(capsys, "prune", *NET, "-r", "0.5", "-o", small, "--save-plan", plan)[0] == 0
    for source in (plan, small):
        assert run(capsys, "prune", *NET, "--plan", source, "--seed", 3, "-o", again)[0] == 0
        expected = fxprune.transform(seeded(models.net, 3), image(3), plan=fxprune.Plan.load(plan)).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(again).items())


def test_a_module_of_the_user_may_load_an_exported_program(tmp_path, capsys):
    small, words = tmp_path / "small.safetensors", ("tests.cli.models:exported", "-i", "2x3x8x8")
    code, _, err = run(capsys, "prune", *words, "-r", "0.5", "-o", small)
    assert (code, "keeps the mode that it was exported in" in err) == (0, True)
    tensors = load_file(small)
    assert [len(tensors[f"{name}.weight"]) for name in ("conv1", "conv2", "head")] == [8, 16, 10]
    assert run(capsys, "verify", *words, small)[0] == 0


def test_verify_measures_the_error_of_the_package(tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    run(capsys, "prune", *NET, "-r", "0.5", "-o", small)
    tensors, text = load_file(small), fxprune.artifacts.weights.SafetensorsFile(small).texts
    tensors["head.bias"][3] += 0.25
    save_file(tensors, small, text)
    original = seeded(models.net)
    expected = fxprune.verify(original, fxprune.load(small, into=original, example_inputs=image()), image())
    assert expected > 0.01
    code, out, _ = run(capsys, "verify", *NET, small, "--json")
    assert code == 4
    figures = {"error": expected, "tolerance": 1e-9, "precision": "float64", "passed": False}
    assert json.loads(out) == {"schema": "fxprune.verify/1", **figures}
    code, out, _ = run(capsys, "verify", *NET, small, "--tolerance", 2 * expected)
    assert (code, out) == (0, f"right: relative error {expected:.1e} <= {2 * expected:g}\n")
    tensors["head.bias"][3] = float("nan")
    save_file(tensors, small, text)
    code, out, _ = run(capsys, "verify", *NET, small, "--json")
    assert (code, json.loads(out)["error"], json.loads(out)["passed"]) == (4, None, False)


def test_verify_takes_the_tolerance_of_the_precision_that_it_ran_in(tmp_path, capsys):
    small, words = tmp_path / "small.safetensors", ("tests.cli.models:Single", "--seed", "1")
    assert run(capsys, "prune", *words, "-i", "2x5x7", "-r", "a=0.5", "-o", small)[0] == 0
    words = (*words, "-i", "3x40x7", small)
    tensors, text = load_file(small), fxprune.artifacts.weights.SafetensorsFile(small).texts
    tensors["b.bias"][3] += 1e-6  # as much as rounding in float32
    save_file(tensors, small, text)
    code, out, err = run(capsys, "verify", *words)
    assert (code, out[:7], "<= 0.0001" in out) == (0, "right: ", True)
    assert (
        "warning: proven in float32, where an error up to 1e-04 is rounding, because it does not run in float64" in err
    )
    told = json.loads(run(capsys, "verify", *words, "--json")[1])
    assert (told["tolerance"], told["precision"], told["passed"]) == (1e-4, "float32", True)
    assert told["error"] > 1e-9  # which is wrong in float64
    assert run(capsys, "verify", *words, "--tolerance", "1e-9")[0] == 4


@pytest.mark.parametrize("format", ["text", "markdown", "json"])
def test_inspect_prints_the_report(format, tmp_path, capsys):
    analysis = fxprune.analyze(seeded(models.normed), tokens(), norms="preserve")
    code, out, err = run(capsys, "inspect", *NORMED, "--norms", "preserve", "--format", format)
    assert code == 0
    assert out.endswith(analysis.report(format) + "\n")
    layers = out.removesuffix(analysis.report(format) + "\n")
    if format == "json":
        assert layers == ""
    else:
        cells = [line.replace("|", " ").split() for line in layers.splitlines()]
        assert ["layer", "type", "shape", "params", "MACs"] in cells
        assert ["up", "Linear", "24", "x", "12", "312", "4032"] in cells
        assert ["norm", "LayerNorm", "12", "24", "0"] in cells
    assert err == "making tests.cli.models:normed\nanalysing\n"
    plan = analysis.plan(ratio=0.5)
    plan.save(tmp_path / "plan.json")
    words = ("--norms", "preserve", "--format", format, "--plan", tmp_path / "plan.json", "-q")
    code, out, err = run(capsys, "inspect", *NORMED, *words)
    assert (code, err) == (0, "")
    before, after = analysis.cost(), analysis.cost(plan)
    if format == "json":
        found = json.loads(out)
        left = found.pop("plan")
        assert found == json.loads(analysis.report("json"))
        for name in ("params", "bytes", "macs"):
            assert left[name] == {"before": getattr(before, name), "after": getattr(after, name)}
        assert left["removed"]["up.weight"] == {"0": 12, "1": 6}
    else:
        assert analysis.report(format) in out
        assert "with the plan" in out
        share = f"{after.params / before.params:.0%}".replace("%", " %")
        assert f"{before.params} -> {after.params} ({share})" in out.splitlines()[-1]


def page_data(path):
    text = path.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script', text, re.DOTALL)[1])


def test_inspect_and_prune_write_a_page(tmp_path, capsys):
    page, plan, small = tmp_path / "report.html", tmp_path / "plan.json", tmp_path / "small.safetensors"
    code, _, err = run(capsys, "inspect", *NET, "--html", page)
    assert (code, err.splitlines()[-1]) == (0, f"wrote {page}")
    analysis = fxprune.analyze(seeded(models.net), image())
    assert page.read_text() == analysis.report("html")
    code, _, err = run(capsys, "prune", *NET, "-r", "0.5", "-o", small, "--save-plan", plan, "--html", page)
    assert (code, err.splitlines()[-1]) == (0, f"wrote {page}")
    found = page_data(page)
    before, after = fxprune.record(fxprune.load(small, into=seeded(models.net), example_inputs=image())).cost
    assert found["totals"]["macs"] == {"before": before.macs, "after": after.macs}
    assert found["totals"]["memory"]["after"] < found["totals"]["memory"]["before"]
    assert found["edges"]
    assert found["locked"]
    assert run(capsys, "inspect", *NET, "--plan", plan, "--html", page)[0] == 0
    assert page_data(page)["totals"]["macs"] == {"before": before.macs, "after": after.macs}


def test_the_page_of_a_model_that_was_not_pruned_is_written(tmp_path, capsys):
    page, small = tmp_path / "report.html", tmp_path / "small.safetensors"
    code, _, _ = run(capsys, "prune", *NET, "-r", "0.5", "--ignore", "*", "-o", small, "--html", page)
    assert code == 3
    assert page_data(page)["totals"]["params"]["before"] == page_data(page)["totals"]["params"]["after"]


def test_a_model_of_its_own_layers_is_inspected_by_the_path_that_is_named(capsys):
    code, out, _ = run(capsys, "inspect", *NET, "--path", "eager", "--json")
    assert (code, json.loads(out)["path"]) == (0, "eager")


@pytest.mark.parametrize(("kind", "path"), [("class", "eager"), ("graph", "fx")])
def test_a_model_is_inspected_by_the_path_that_is_preferred(kind, path, capsys):
    code, out, _ = run(capsys, "inspect", *NET, "--prefer", kind, "--json")
    assert (code, json.loads(out)["path"]) == (0, path)


@pytest.mark.parametrize("path", ["eager", "export", "hooks"])
def test_a_plan_is_inspected_by_the_path_that_it_was_made_on(path, tmp_path, capsys):
    analysis = fxprune.analyze(seeded(models.net), image(), path=path)
    plan = analysis.plan(ratio=0.5)
    plan.save(tmp_path / "plan.json")
    code, out, _ = run(capsys, "inspect", *NET, "--plan", tmp_path / "plan.json", "--json")
    told = json.loads(out)
    assert (code, told["path"], told["plan"]["params"]["after"]) == (0, path, analysis.cost(plan).params)


def test_path_and_preference_exclude_each_other(capsys):
    code, _, err = run(capsys, "inspect", *NET, "--prefer", "class", "--path", "fx")
    assert code == 1
    assert "path says already which path to take" in err


def test_diff_says_what_only_one_removes(tmp_path, capsys):
    original = seeded(models.net)
    first = fxprune.transform(original, image(), ratio=0.25)
    second = fxprune.analyze(original, image()).plan(ratio=0.5)
    fxprune.save(first, tmp_path / "first.safetensors")
    fxprune.record(first).plan.save(tmp_path / "first.json")
    second.save(tmp_path / "second.json")
    expected = fxprune.Plan.load(tmp_path / "first.json").diff(fxprune.Plan.load(tmp_path / "second.json"))
    words = (tmp_path / "first.safetensors", tmp_path / "second.json")
    assert run(capsys, "diff", *words) == (0, f"{expected}\n", "")
    found = json.loads(run(capsys, "diff", *words, "--json")[1])
    assert (found["identical"], found["only_first"]) == (False, {})
    assert found["only_second"]["conv1.bias"] == {"0": expected.only_second["conv1.bias"][0]}
    same = ("diff", tmp_path / "first.safetensors", tmp_path / "first.json")
    assert run(capsys, *same) == (0, "identical: both remove the same\n", "")
    assert json.loads(run(capsys, *same, "--json")[1])["identical"] is True


def test_diff_sees_constants_that_are_folded(tmp_path, capsys):
    original = seeded(models.dead)
    for bias in ("prune", "fold"):
        fxprune.analyze(original, line()).plan(masks="zeros", bias=bias).save(tmp_path / f"{bias}.json")
    _, out, _ = run(capsys, "diff", tmp_path / "prune.json", tmp_path / "fold.json")
    assert out == "both remove the same\nconstants are folded differently\n"


def test_diff_refuses_plans_of_different_models(tmp_path, capsys):
    for width in (8, 16):
        plan = fxprune.analyze(models.Net(width).eval(), image()).plan(ratio=0.5)
        plan.save(tmp_path / f"{width}.json")
    code, out, err = run(capsys, "diff", tmp_path / "8.json", tmp_path / "16.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: the plans are for different models\n  why  for the first ")


def test_arguments_are_literals_or_texts(capsys):
    words = ("tests.cli.models:Net", "--input", "1x3x8x8", "--arg", "width=4", "--arg", "act=tanh", "--json")
    found = json.loads(run(capsys, "inspect", *words)[1])
    assert found["layers"][0]["shapes"]["weight"] == [4, 3, 3, 3]
    code, _, err = run(capsys, "inspect", *words, "--arg", "act=tahn")
    assert (code, err) == (2, 'error: --arg "act" is given twice\n  do   give it once\n')


def test_training_mode_is_kept_on_request(tmp_path, capsys):
    for words, training in (((), False), (("--train",), True)):
        run(capsys, "prune", *NET, "-r", "0.5", "-o", tmp_path / "small.safetensors", *words)
        small = fxprune.load(tmp_path / "small.safetensors", into=seeded(models.net), example_inputs=image())
        assert small.training is training


def test_a_module_in_the_current_directory_is_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "made_here.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Linear(3, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "inspect", "here.made_here:make", "-i", "1x3")[0] == 0
    monkeypatch.chdir(tmp_path / "here")
    assert run(capsys, "inspect", "made_here:make", "-i", "1x3")[0] == 0


def test_a_module_object_is_the_model_itself(capsys):
    code, out, _ = run(capsys, "inspect", "tests.cli.models:model", "--input", "1x4")
    assert code == 0
    assert "Sequential: 67 parameters" in out


# -- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_weights_are_those_of_the_file(suffix, tmp_path, capsys):
    trained = randomise(models.Net(), 5, weights=True)
    path, small = tmp_path / f"trained.{suffix}", tmp_path / "small.safetensors"
    state = trained.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    code, _, err = run(capsys, "prune", *NET, "--weights", path, "-r", "0.5", "-o", small)
    assert (code, "random" in err) == (0, False)
    expected = fxprune.transform(trained.eval(), image(), ratio=0.5).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(small).items())
    assert run(capsys, "verify", *NET, small, "--weights", path)[0] == 0
    assert run(capsys, "verify", *NET, small)[0] == 4


def test_a_checkpoint_with_more_than_weights(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    net = models.Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.save({"epoch": 3, "optimizer": optimizer.state_dict(), "state": net.state_dict()}, path)
    code, _, err = run(capsys, "inspect", *NET, "--weights", path)
    assert code == 1
    assert f'error: "{path}" holds no state_dict\n  why  "epoch" is a int\n  do   --weights-key state\n' in err
    assert run(capsys, "inspect", *NET, "--weights", path, "--weights-key", "state")[0] == 0
    code, _, err = run(capsys, "inspect", *NET, "--weights", path, "--weights-key", "sate")
    assert (code, 'has no key "sate"\n  why  did you mean "state"?' in err) == (1, True)


def test_tied_weights_stand_once_in_the_file(tmp_path, capsys):
    trained = models.Tied()
    save_model(trained, str(tmp_path / "tied.safetensors"))
    words = ("tests.cli.models:Tied", "-i", "2x5:int64<20", "--weights", tmp_path / "tied.safetensors", "-r", "0.5")
    code, _, _ = run(capsys, "prune", *words, "-o", tmp_path / "small.safetensors")
    assert code == 0
    found = load_file(tmp_path / "small.safetensors")
    assert list(found) == ["embed.weight"]
    columns = [
        column
        for column in trained.embed.weight.detach().T
        if any(torch.equal(column, c) for c in found["embed.weight"].T)
    ]
    assert (found["embed.weight"].shape, len(columns)) == ((20, 4), 4)


def test_weights_of_another_precision_are_mentioned(tmp_path, capsys):
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in models.Net().state_dict().items()},
        tmp_path / "half.safetensors",
    )
    code, _, err = run(capsys, "inspect", *NET, "--weights", tmp_path / "half.safetensors")
    assert (code, "weights are torch.float16 in the file and torch.float32 in the model" in err) == (0, True)


def changed(**entries):
    state = {**models.Net().state_dict(), **entries}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


WRONG_WEIGHTS = {
    "missing": (
        changed(**{"head.bias": None}),
        '"head.bias" of the model',
        "the file has no such tensor; known names: norm.num_batches_tracked, conv1.bias, ",
    ),
    "unexpected": (changed(**{"haed.bias": torch.ones(1)}), '"haed.bias" of the file', 'did you mean "head.bias"?'),
    "shape": (
        changed(**{"head.bias": torch.ones(9)}),
        '"head.bias"',
        "in the file its shape is (9,), in the model (10,)",
    ),
    "kind": (changed(**{"head.bias": torch.ones(10).int()}), '"head.bias"', "in the file it is torch.int32"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_of_another_model_are_refused(case, tmp_path, capsys):
    state, at, why = WRONG_WEIGHTS[case]
    save_file(state, tmp_path / "other.safetensors")
    code, out, err = run(capsys, "inspect", *NET, "--weights", tmp_path / "other.safetensors")
    assert (code, out) == (1, "")
    assert "are not those of this Net\n" in err
    assert f"  at   {at}\n" in err
    assert why in err


def test_files_without_weights_are_refused(tmp_path, capsys):
    torch.save(models.Net(), tmp_path / "whole.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    run(capsys, "prune", *NET, "-r", "0.5", "-o", tmp_path / "small.safetensors")
    for name, what in {
        "whole.pt": "holds more than tensors\n  why  it holds a tests.cli.models.Net, and reading that runs code\n",
        "text.pt": " holds more than tensors\n  why  torch says: ",
        "list.pth": "holds no state_dict\n  why  it is a list",
        "small.safetensors": "holds a small model, not the weights of MODEL",
    }.items():
        code, _, err = run(capsys, "inspect", *NET, "--weights", tmp_path / name)
        assert (code, what in err) == (1, True), (name, err)


# -- collections ------------------------------------------------------------------------------------------


def test_torchvision_models(tmp_path, capsys):
    torchvision()
    words = ("torchvision:resnet18", "-i", "1x3x32x32", "--arg", "num_classes=7")
    code, out, err = run(capsys, "prune", *words, "-r", "0.5", "-o", tmp_path / "small.safetensors", "--json")
    assert (code, json.loads(out)["params"]["after"] < 3e6) == (0, True)
    assert load_file(tmp_path / "small.safetensors")["fc.bias"].shape == (7,)
    assert run(capsys, "verify", *words, tmp_path / "small.safetensors")[0] == 0
    code, _, err = run(capsys, "inspect", "torchvision:resnet81", "-i", "1x3x32x32")
    assert (code, 'torchvision has no model "resnet81"\n  why  did you mean "resnet18"?' in err) == (1, True)


def test_no_backbone_is_downloaded(capsys, monkeypatch):
    torchvision()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    code, out, _ = run(
        capsys, "inspect", "torchvision:lraspp_mobilenet_v3_large", "-i", "1x3x64x64", "--device", "meta"
    )
    assert code == 0
    assert "\nLRASPP: " in out


def test_timm_models(capsys):
    torchvision()
    code, out, err = run(capsys, "inspect", "timm:resnet10t", "-i", "1x3x64x64", "--arg", "num_classes=3", "--json")
    assert (code, json.loads(out)["layers"][-1]["shapes"]) == (0, {"weight": [3, 512], "bias": [3]})
    assert "the weights of timm:resnet10t are random" in err
    code, _, err = run(capsys, "inspect", "timm:resnet10_t", "-i", "1x3x64x64")
    assert (code, 'timm has no model "resnet10_t"\n  why  did you mean "resnet10t"?' in err) == (1, True)


# -- export -----------------------------------------------------------------------------------------------


def test_export_writes_what_the_small_model_computes(tmp_path, capsys):
    small, path = tmp_path / "small.safetensors", tmp_path / "small.pt2"
    run(capsys, "prune", *NET, "-r", "0.5", "-o", small)
    code, out, _ = run(capsys, "export", *NET, small, "-o", path, "--dynamic-batch", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["path"], told["format"], told["bytes"]) == (str(path), "pt2", path.stat().st_size)
    assert told["error"] < 1e-6
    program = torch.export.load(path).module()
    expected = fxprune.load(small, into=seeded(models.net), example_inputs=image())
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program(x), expected(x))
    code, out, _ = run(capsys, "export", *NET, "-o", tmp_path / "whole.onnx")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'whole.onnx'}: onnx, {(tmp_path / 'whole.onnx').stat().st_size} bytes\n")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "whole.onnx"))
    [found] = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), seeded(models.net)(image()).detach(), rtol=1e-4, atol=1e-5)
