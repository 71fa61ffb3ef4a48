"""Refused commands: the message, the exit code, and that no file was written or changed."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from fxprune.artifacts import safetensors_file
from fxprune.cli import main
from tests.cli.models import Net

NET = ("tests.cli.models:Net", "--input", "1x3x8x8")
OUT = ("-r", "0.5", "-o", "small.safetensors")

USAGE = {
    (): "say what to do\n  why  the commands are inspect, prune, verify, export, summary, sensitivity, pareto, stream, "
    "diff",
    ("report",): 'there is no command "report"\n  why  `fxprune inspect` reports on a model; --html writes a page',
    ("prnue",): 'there is no command "prnue"\n  why  did you mean "prune"?',
    ("--json", "inspect"): "there is no option --json before the command",
    ("--vresion",): 'no option --vresion before the command\n  why  did you mean "--version"?',
    ("-x",): "there is no option -x before the command",
    ("inspect",): "the following arguments are required: --input/-i",
    ("verify", *NET): "the following arguments are required: SMALL",
    ("inspect", "m:f"): "the following arguments are required: --input/-i",
    ("prune", *NET, "--ration", "0.5", "-o", "a.safetensors"): 'no option --ration\n  why  did you mean "--ratio"?',
    ("prune", *NET, "--ratio", "0.5"): "the following arguments are required: --output/-o",
    ("prune", *NET, "-o", "a.safetensors"): (
        "exactly one of --ratio, --keep, --masks and --plan, or --counts or --drop\n  why  none of them was given"
    ),
    ("prune", *NET, *OUT, "--masks", "zeros"): (
        "  why  --ratio and --masks were given\n  do   leave out all but --ratio, or another of them"
    ),
    ("prune", *NET, *OUT, "--data", "m:f"): "  do   add --repair, or choose --importance from ",
    ("prune", *NET, *OUT, "--bogus"): "there is no option --bogus\n  do   `fxprune prune --help` lists the options",
    ("inspect", *NET, "--ratio", "0.5"): "fxprune inspect does not take it; --ratio is an option of prune, stream\n",
    ("verify", "a.safetensors", NET[0], *NET[1:]): "  do   say `fxprune verify tests.cli.models:Net a.safetensors`",
    ("prune", *NET, "-k", "macs=50", "-o", "b.safetensors"): 'write 0.5 for a share, or "50 macs" for so many',
    ("prune", *NET, "-r", "1", "-o", "a.safetensors"): '"1" is no number in [0, 1), alone or as PATTERN=NUMBER',
    ("prune", *NET, "-r", "nan", "-o", "a.safetensors"): '"nan" is no number in [0, 1)',
    ("prune", *NET, *OUT, "-r", "conv*=0.2"): "several --ratio contradict each other",
    ("prune", *NET, *OUT, "--importance", "fpmg"): 'there is no importance "fpmg": did you mean "fpgm"?',
    ("prune", *NET, *OUT, "--norms", "keep"): 'there is no norms "keep": did you mean "kept"?',
    ("prune", *NET, *OUT, "--path", "exprot"): 'there is no path "exprot": did you mean "export"?',
    ("inspect", *NET, "--path", "exprot"): 'there is no path "exprot": did you mean "export"?',
    ("inspect", *NET, "--prefer", "clas"): 'there is no preference "clas": did you mean "class"?',
    ("prune", *NET, *OUT, "--round-to", "0"): '"0" is no integer of at least 1',
    ("prune", *NET, *OUT, "--seed", "-1"): '"-1" is no integer of at least 0',
    ("prune", *NET, *OUT, "--border", "map"): "--border is without effect here\n  why  no constants are folded",
    ("prune", *NET, "--masks", "zeros", "--round-to", "8", "-o", "a.safetensors"): "--round-to is without effect here",
    ("prune", *NET, "--plan", "p.json", "--importance", "l1", "-o", "a.safetensors"): (
        "--importance is without effect here\n  why  --plan says already which channels go"
    ),
    ("prune", *NET, "--plan", "p.json", "--exact", "-o", "a.safetensors"): "--exact is without effect here",
    ("prune", *NET, "-r", "0.5", "-o", "a.pt"): 'cannot write "a.pt"\n  why  the suffix says the format',
    ("prune", *NET, "-r", "0.5", "-o", "a"): "a name without suffix is a directory, and Net has no save_pretrained",
    ("prune", *NET, *OUT, "--save-plan", "small.safetensors"): "end it in .json",
    ("prune", *NET, *OUT, "--html", "report.json"): "end it in .html",
    ("inspect", *NET, "--html", "report"): "end it in .html",
    ("export", *NET, "-o", "a.onx"): "end it in .onnx or .pt2",
    ("export", *NET, "-o", "a.pt2", "--opset", "18"): "--opset is for .onnx files",
    ("export", *NET, "a.safetensors", "b.safetensors", "-o", "a.pt2"): "unrecognized arguments: b.safetensors",
    ("prune", *NET, "--keep", "mcas=0.5", "-o", "a.safetensors"): '"mcas=0.5": there is no such budget; did you mean',
    ("prune", *NET, "--keep", "macs=0", "-o", "a.safetensors"): '"macs=0": a budget is a share, an integer or a text',
    ("prune", *NET, "-k", "macs=50%", "-o", "a.safetensors"): '"50%" is no number with a unit of macs; write for',
    ("prune", *NET, "-k", "latency=5", "-o", "a.safetensors"): '"latency=5": a latency is a share or a text with',
    ("inspect", *NET, "--format", "jsno"): 'there is no format "jsno": did you mean "json"?',
    ("inspect", *NET, "--device", "cdua"): 'there is no device "cdua": did you mean "cuda"?',
    ("inspect", *NET, "--device", "gpu"): 'there is no device "gpu": did you mean "cuda"?',
    ("inspect", *NET, "--weights", "a.bin"): "end it in .safetensors, .pt, .pth",
    ("inspect", *NET, "--weights", "a.safetensors", "--weights-key", "k"): "--weights-key is for .pt and .pth files",
    ("inspect", *NET, "--arg", "width"): '"width" is not NAME=VALUE',
    ("inspect", "m:f", "-i", "1,3,8,8"): '"1,3,8,8" is not [NAME=]SHAPE[:DTYPE[<N]], like 1x3x224x224',
    ("inspect", "m:f", "-i", "1x3:flaot32"): 'there is no dtype "flaot32": did you mean "float32"?',
    ("inspect", "m:f", "-i", "1x3:float32<5"): "a bound is for integers, not for float32",
    ("inspect", "m:f", "-i", "1x3:int8<200"): "the bound of int8 is from 1 to 127",
    ("inspect", *NET, "-i", "x=1x3"): "the inputs cannot all be named\n  why  \"x\" is given by its place too",
    ("inspect", "tests.cli.models:Net", "-i", "x=1x3", "-i", "x=1x3"): '--input "x" is given twice',
    ("inspect", "nets.py", "-i", "1x3"): 'names no model\n  why  MODEL is package.module:callable, torchvision:NAME',
    ("inspect", "nets.py:Net", "-i", "1x3"): '"nets.py:Net" names no model\n  why  MODEL',
    ("inspect", "nets:", "-i", "1x3"): '"nets:" names no model',
    ("inspect", "net.pt2", "-i", "1x3"): '"net.pt2" names no model\n  why  torch.export.load unpickles',
    ("prune", "a/net.PT2", "-i", "1x3", "-r", "0.5", "-o", "a.safetensors"): 'torch.export.load("a/net.PT2").module()',
    ("inspect", "net.pt", "-i", "1x3"): "name its class, and add --weights net.pt for a state_dict",
    ("summary", "net.pth", "a.safetensors", "-i", "1x3"): "loading a whole model from a pickle runs code",
    ("inspect", "small.safetensors", "-i", "1x3"): "why  it holds weights, and no code that makes a model of them",
    ("inspect", "plan.json", "-i", "1x3"): "do   name the original, and add --plan plan.json",
    ("export", "net.onnx", "-i", "1x3", "-o", "a.onnx"): "why  a graph of ONNX cannot be pruned here",
    ("verify", *NET, "a.safetensors", "--tolerance", "-1"): '"-1" is no finite number of at least 0',
    ("diff", "plan.json"): "the following arguments are required: SECOND",
}  # fmt: skip

MODELS = {
    "nowhere.nets:Net": 'there is no module "nowhere"\n  why  in the current directory: ',
    "made_nets:Net": 'there is no module "made_nets"\n  why  in the current directory: did you mean "made_net"?',
    "tests.cli.modles:Net": 'in package "tests.cli": did you mean "tests.cli.models"?',
    "tests.cli.models.more:Net": 'there is no module "tests.cli.models.more"',
    "tests.cli.models:Nett": 'module "tests.cli.models" has no "Nett"\n  why  did you mean "Net"?',
    "tests.cli.models:qqqq": 'has no "qqqq"\n  why  known names: Net, net, loaded, Single, ',
    "tests.cli.models:Net.forwrad": 'has no "forwrad"\n  why  did you mean "forward"?',
    "tests.cli.models:number": '"tests.cli.models:number" is no callable\n  why  it is a int',
    "tests.cli.models:nothing": "makes no model\n  why  it returns a NoneType, no torch.nn.Module",
    "tests.cli.models:broken": '"tests.cli.models:broken" raised an error\n  at   models.py:',
    "tests.cli.models:leaves": '"tests.cli.models:leaves" raised an error\n  at   models.py:',
    "tests.cli.models:slow": "cannot be called\n  why  missing a required argument: 'mark'; its arguments are mark",
    "made_net:Net": '"made_net" raised an error\n  at   made_net.py:1\n  why  ZeroDivisionError: division by zero',
    "made_wrong:Net": 'importing "made_wrong" raised an error\n  at   made_wrong.py:1\n  why  SyntaxError: ',
    "made_needs:Net": '"made_needs" cannot be imported\n  why  it imports "not_there_at_all", which is not installed',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory to work in, with modules that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "made_net.py").write_text("1 / 0\n")
    (tmp_path / "made_wrong.py").write_text("def :\n")
    (tmp_path / "made_needs.py").write_text("import not_there_at_all\n")
    return tmp_path


def refused(capsys, *words):
    """Exit code and message of a command that prints nothing and writes nothing."""
    before = sorted(os.listdir())
    code = main(list(map(str, words)))
    out, err = capsys.readouterr()
    assert (out, sorted(set(os.listdir()) - {"__pycache__"})) == ("", before)
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    return code, err


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_usage(words, folder, capsys):
    (folder / "p.json").write_text("{}")
    (folder / "a.bin").touch()
    (folder / "a.safetensors").write_bytes(b"none")
    code, err = refused(capsys, *words)
    assert USAGE[words] in err
    assert code == 2


@pytest.mark.parametrize("spec", MODELS)
def test_names_without_a_model_are_refused(spec, folder, capsys):
    code, err = refused(capsys, "inspect", spec, "--input", "1x3")
    assert MODELS[spec] in err
    assert code == 1


def test_arguments_that_a_callable_does_not_take(folder, capsys):
    code, err = refused(capsys, "inspect", *NET, "--arg", "widht=3")
    assert (code, "unexpected keyword argument 'widht'; did you mean \"width\"?" in err) == (1, True)
    code, err = refused(capsys, "inspect", "tests.cli.models:model", "-i", "1x4", "--arg", "a=3")
    assert (code, "is a model, not a callable\n  why  --arg was given" in err) == (1, True)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_libraries_that_are_missing_or_do_not_load(library, folder, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    code, err = refused(capsys, "inspect", f"{library}:resnet18", "-i", "1x3x8x8")
    assert (code, f"{library} is not installed\n  do   pip install {library}" in err) == (1, True)
    monkeypatch.undo()

    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib, "import_module", fails)
    code, err = refused(capsys, "inspect", f"{library}:resnet18", "-i", "1x3x8x8")
    assert code == 1
    assert f"{library} cannot be imported\n  why  RuntimeError: operator torchvision::nms does not exist\n" in err
    assert "install builds of torch and torchvision that were made for each other" in err


def test_errors_of_the_package_are_shown_whole(folder, capsys):
    code, err = refused(capsys, "inspect", "tests.cli.models:Net", "-i", "1x4x8x8")
    assert (code, "error: " in err) == (1, True)
    code, err = refused(capsys, "inspect", "tests.cli.models:Raising", "-i", "1x4")
    assert (code, "no forward today" in err) == (1, True)
    code, err = refused(capsys, "prune", *NET, *OUT, "--ignore", "conv3")
    assert (code, 'error: --ignore names nothing: "conv3"\n  why  did you mean "conv' in err) == (1, True)
    code, err = refused(capsys, "prune", *NET, "-r", "cnv1=0.5", "-o", "small.safetensors")
    assert (code, 'did you mean "conv1"?' in err) == (1, True)
    assert "do   write a name, a glob or name:kind, as `fxprune inspect` lists them" in err


def test_answers_name_options_and_no_arguments_of_python(folder, capsys):
    code, err = refused(capsys, "prune", *NET, "-r", "head=0.5", "-o", "small.safetensors")
    assert (code, "do   `fxprune inspect` says what holds its channels" in err) == (1, True)
    assert main(["prune", *NET, *OUT]) == 0
    capsys.readouterr()
    assert main(["verify", *NET, "small.safetensors", "--arg", "width=8"]) == 1
    err = capsys.readouterr().err
    assert "or give the --arg NAME=VALUE of the model that it was made with" in err
    assert "analyze" not in err


@pytest.mark.parametrize("command", ["verify", "inspect", "prune"])
def test_token_ids_out_of_range_are_answered_with_the_option(command, folder, capsys):
    model, scale, small = "tests.cli.models:normed", ("-i", "scale=2x7x1"), "small.safetensors"
    assert main(["prune", model, "-i", "ids=2x7:int64<50", *scale, "-r", "0.5", "-o", small, "--seed", "0"]) == 0
    capsys.readouterr()
    more = {"verify": [small], "inspect": [], "prune": ["-r", "0.5", "-o", "other.safetensors"]}[command]
    assert main([command, model, *more, "-i", "ids=2x7:int64<9000", *scale, "--seed", "0"]) == 1
    err = capsys.readouterr().err
    assert "is in the inputs, the table has rows 0 to 49" in err
    assert "do   check the numbers of --input, such as token ids below N: [NAME=]1x16:int64<N" in err
    assert not (folder / "other.safetensors").exists()


def test_inputs_that_do_not_fit_are_answered_with_options(folder, capsys):
    words = ("inspect", "tests.cli.models:Normed", "-i", "ids=2x7:int64<50")
    code, err = refused(capsys, *words, "-i", "scael=1")
    hint = "did you mean \"scale\" by \"scael\"? --input gives 0 without a name, and ['ids', 'scael']"
    assert (code, hint in err) == (1, True), err
    assert "do   give each as --input SHAPE, in the order of forward, or as --input NAME=SHAPE\n" in err
    code, err = refused(capsys, *words[:2], "-i", "2x7", "-i", "1")
    assert (code, "do   give integers, such as token ids, as --input [NAME=]1x16:int64<N" in err) == (1, True)
    code, err = refused(capsys, "inspect", *NET[:2], "1x4x8x8")
    assert (code, "do   check shapes and dtypes of --input" in err) == (1, True)


def test_a_device_that_is_not_there(folder, capsys):
    code, err = refused(capsys, "inspect", *NET, "--device", "cuda:99")
    assert (code, 'the device "cuda:99" cannot be used\n  why  ' in err) == (1, True)


def test_files_are_looked_at_before_the_work(folder, capsys):
    (folder / "weights.safetensors").write_bytes(b"none")
    (folder / "plan.json").write_text("{}")
    (folder / "w.pt").touch()
    os.symlink("weights.safetensors", folder / "link.safetensors")
    cases = {
        ("prune", *NET, "-r", "0.5", "-o", "no/small.safetensors"): 'there is no directory "no"\n  do   make it first',
        ("prune", *NET, *OUT, "--save-plan", "no/plan.json"): 'there is no directory "no"',
        ("export", *NET, "-o", "no/a.onnx"): 'there is no directory "no"',
        ("prune", *NET, *OUT, "--weights", "wieghts.safetensors"): 'did you mean "weights.safetensors"?',
        ("prune", *NET, *OUT, "--weights", "no/weights.safetensors"): 'there is no directory "no"',
        ("prune", *NET, "--plan", "plan.jsn", "-o", "small.safetensors"): 'did you mean "plan.json"?',
        ("verify", *NET, "smal.safetensors"): 'there is no file "smal.safetensors"',
        (
            "verify",
            *NET,
            "nope.safetensors",
        ): f'why  no name in "{folder}" is like it\n  do   pass the name of a file that is there; names',
        ("diff", "w.pt", "plan.json"): "do   pass the .json file that `fxprune prune --save-plan` wrote, or",
        ("prune", *NET, "--plan", "w.pt", "-o", "small.safetensors"): '"w.pt" is no plan',
        ("verify", *NET, "plan.json"): '"plan.json" is no small model',
        ("summary", *NET, "plan.json"): "do   pass the .safetensors file that",
        ("diff", "plan.json", "."): '"." is a directory',
        ("prune", *NET, "-r", "0.5", "--weights", "weights.safetensors", "-o", "./weights.safetensors"): (
            'cannot write "./weights.safetensors"\n  why  it is read by this command'
        ),
        ("prune", *NET, "-r", "0.5", "--weights", "weights.safetensors", "-o", "link.safetensors"): (
            "it is read by this command"
        ),
        ("prune", *NET, "--plan", "plan.json", "-o", "a.safetensors", "--save-plan", "plan.json"): (
            "it is read by this command"
        ),
    }
    for words, text in cases.items():
        code, err = refused(capsys, *words)
        assert (code, text in err, "making" in err) == (1, True, False), (words, err)
    (folder / "a.pt2").mkdir()
    code, err = refused(capsys, "export", *NET, "-o", "a.pt2")
    assert (code, "it is a directory" in err) == (1, True)


def test_a_directory_that_is_not_writable(folder, capsys, monkeypatch):
    (folder / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("closed"))  # whoever runs this may write
    code, err = refused(capsys, "prune", *NET, "-r", "0.5", "-o", "closed/small.safetensors")
    assert (code, "is not writable" in err) == (1, True)


def test_files_that_are_not_what_they_should_be(folder, capsys):
    (folder / "small.safetensors").write_bytes(b"nothing of the kind")
    (folder / "plan.json").write_text("{}")
    for words in (("verify", *NET, "small.safetensors"), ("diff", "small.safetensors", "plan.json")):
        code, err = refused(capsys, *words)
        assert (code, 'the file "small.safetensors" is not what it should be' in err) == (1, True)
    code, err = refused(capsys, "diff", "plan.json", "plan.json")
    assert (code, "it is no plan of fxprune" in err) == (1, True)


def test_debug_shows_the_traceback(folder, capsys):
    assert main(["inspect", "tests.cli.models:broken", "-i", "1x3", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert 'raise ValueError("this model is broken")' in err
    assert err.splitlines()[-2:] == ["  why  ValueError: this model is broken", "  do   --debug shows all of it"]


def test_an_interrupt_leaves_no_file(folder, capsys, monkeypatch):
    (folder / "small.safetensors").write_bytes(b"an old file")
    tensors = []

    def raw(tensor):
        tensors.append(tensor)
        if len(tensors) > 2:
            raise KeyboardInterrupt
        return b"\0" * tensor.nbytes

    monkeypatch.setattr(safetensors_file, "raw_bytes", raw)
    before = sorted(os.listdir())
    assert main(["prune", *NET, *OUT, "-q", "--seed", "0"]) == 130
    assert capsys.readouterr() == ("", "interrupted; files that are not complete were not written\n")
    assert sorted(os.listdir()) == before
    assert (folder / "small.safetensors").read_bytes() == b"an old file"


def test_help_names_every_command_and_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: fxprune COMMAND [options]\n")
    for word in (
        "inspect",
        "prune",
        "verify",
        "export",
        "summary",
        "sensitivity",
        "pareto",
        "diff",
        "130  interrupted by Ctrl-C",
        "141  whoever read the output has gone",
        "4    verification failed",
    ):
        assert word in text
    for command, option in {
        "inspect": "--plan",
        "prune": "--round-to",
        "verify": "--tolerance",
        "diff": "FIRST",
    }.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert option in text
        assert "3    nothing was pruned" in text


def test_weights_that_are_a_whole_model_and_weights_of_data_parallel(folder, capsys):
    torch.save(Net(), folder / "whole.pt")
    code, err = refused(capsys, "inspect", *NET, "--weights", "whole.pt")
    assert (code, "why  it holds a tests.cli.models.Net, and reading that" in err, "\x1b" in err) == (1, True, False)
    assert "do   save model.state_dict()" in err
    torch.save(torch.nn.DataParallel(Net()).state_dict(), folder / "parallel.pt")
    assert main(["inspect", *NET, "--weights", "parallel.pt"]) == 0
    assert 'weights have "module." before their names in the file' in capsys.readouterr().err


def test_the_report_says_what_a_model_that_was_not_repaired_is_compared_with(folder, capsys):
    text = "its accuracy is not measured"
    for words, told in (((), True), (("-q",), False), (("--json",), False), (("--format", "markdown"), False)):
        assert main(["prune", *NET, *OUT, *words]) == 0
        assert (text in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("files", "do"),
    [
        (("small_model.safetensors", "config.json"), 'pass "{}/small_model.safetensors"'),
        (("model.safetensors", "config.json"), "pass it as MODEL, or name a file"),
        ((), "pass the name of a file"),
    ],
)
def test_a_directory_in_place_of_a_small_model(files, do, tmp_path, capsys):
    for name in files:
        (tmp_path / name).touch()
    code, err = refused(capsys, "verify", *NET, tmp_path)
    assert (code, err.splitlines()[0]) == (1, f'error: "{tmp_path}" is a directory')
    assert err.splitlines()[-1] == f"  do   {do.format(tmp_path)}"
