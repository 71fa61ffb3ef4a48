"""The arguments and options of each command, in the order of its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from fxprune._repair import MODES
from fxprune.cli.inputs import example
from fxprune.cli.models import FORMS
from fxprune.cli.usage import (
    Parser,
    amounts,
    count,
    integer,
    kept,
    largest,
    literal,
    multiple,
    one_of,
    output_path,
    share,
    shares,
    tolerance,
)
from fxprune.criteria import CRITERIA, MEASURED
from fxprune.errors import nearest
from fxprune.paths import PATHS, PREFERENCES
from fxprune.planning.figures import MEASURES
from fxprune.planning.scopes import SCOPES, SEARCH


def _plans(parser: Parser) -> None:
    parser.option("first", metavar="FIRST", help="a plan.json, or the .safetensors file of a small model")
    parser.option("second", metavar="SECOND", help="another one, for the same model")


def _model(parser: Parser) -> None:
    parser.option("model", metavar="MODEL", help=FORMS.removeprefix("MODEL is "))


def _small(parser: Parser, **settings: str) -> None:
    parser.option("small", metavar="SMALL", help="a file that `fxprune prune` or `fxprune.save` wrote", **settings)


def _model_options(parser: Parser) -> None:
    parser.option(
        *("--input", "-i"),
        type=example,
        action="append",
        required=True,
        metavar="[NAME=]SHAPE[:DTYPE[<N]]",
        help="an example input, like 1x3x224x224 or ids=2x16:int64<30000; positional ones in their order. Filled "
        "with normal numbers; integers below N, or zeros; True. Or a file: .npz, .pt, .pth or .safetensors. "
        "Can be repeated.",
    )
    parser.option(
        "--arg", type=literal, action="append", default=[], metavar="NAME=VALUE",
        help="an argument of the callable, a Python literal or else a text. Can be repeated.",
    )  # fmt: skip
    parser.option("--weights", metavar="FILE", help="weights to load, all or none: .safetensors, .pt or .pth")
    parser.option("--weights-key", metavar="KEY", help="where in a .pt file the state_dict stands")
    parser.option("--train", action="store_true", help="leave the model in training mode (default: evaluation)")
    parser.option(
        "--device", type=_device, default=torch.device("cpu"), metavar="DEVICE", help="cpu (default), cuda, ..."
    )
    parser.option("--seed", type=integer(0), metavar="N", help="of random weights, inputs and importance (default 0)")


def _analysis_options(parser: Parser) -> None:
    parser.option("--plan", metavar="FILE", help="a plan: plan.json, or the .safetensors file of a small model")
    parser.option("--path", type=one_of("path", PATHS), metavar="PATH", help=f"only this path: {', '.join(PATHS)}")
    preferences = " or ".join(PREFERENCES)
    parser.option(
        "--prefer", type=one_of("preference", PREFERENCES), metavar="KIND", help=f"{preferences}, if possible"
    )
    parser.option(
        *("--norms",),
        type=one_of("norms", ("kept", "preserve")),
        metavar="NORMS",
        help='what statistics count: "kept" channels (default without --plan), or "preserve" the original width',
    )
    _outputs_option(parser)
    parser.option("--strict", action="store_true", help="an operation without a rule is an error")
    parser.option("--html", metavar="FILE", help="also the report as a page for a browser, an .html file")


def _outputs_option(parser: Parser) -> None:
    parser.option(
        "--outputs",
        type=output_path,
        action="append",
        metavar="KEY[.KEY]",
        help="a part of the result that counts, like boxes, 0 or features.0; without it all do. Can be repeated.",
    )


def _budget_options(parser: Parser) -> None:
    parser.option(
        *("--keep", "-k"),
        type=kept,
        action="append",
        metavar="KEY=AMOUNT",
        help=f"the cost that stays, like macs=0.5, bytes=20MB or latency=5ms ({', '.join(MEASURES)}). Can be repeated.",
    )
    parser.option(
        "--scope",
        type=one_of("scope", SCOPES),
        metavar="SCOPE",
        help=f"how --keep is spread over the groups: {', '.join(SCOPES)} (default local)",
    )
    parser.option(
        "--counts",
        type=count,
        action="append",
        metavar="PATTERN=N",
        help="the number of channels that stay in the groups of a pattern. Can be repeated.",
    )
    parser.option(
        "--drop",
        action="append",
        metavar="PATTERN",
        help="residual branches that go whole, like layer3.1 or encoder.layer.4.attention. Can be repeated.",
    )
    parser.option("--depth", action="store_true", help="let branches go where --keep is met better so; needs --repair")
    _search_options(parser)
    _limit_options(parser)


def _search_options(parser: Parser) -> None:
    parser.option(
        "--search-steps", type=integer(1), metavar="N", help="the small models that --scope search measures (60)"
    )
    parser.option("--search-file", metavar="FILE", help="a .json file, from which a killed --scope search goes on")


def _limit_options(parser: Parser) -> None:
    parser.option(
        "--uniform",
        action="append",
        metavar="PATTERN",
        help="repeated blocks, like layers.*.mlp, whose groups keep equally many channels, can be repeated; or config, "
        "for widths that the config of a Hugging Face model can say",
    )
    parser.option("--min-channels", type=integer(1), metavar="N", help="the least number that stays in a group")
    parser.option("--max-ratio", type=largest, metavar="SHARE", help="the largest share that a group loses")


def _importance_options(parser: Parser) -> None:
    parser.option(
        *("--importance",),
        type=one_of("importance", [*CRITERIA, *MEASURED]),
        metavar="NAME",
        help=f"{', '.join(CRITERIA)} (default l2); with --data {', '.join(MEASURED)}",
    )
    parser.option("--scores", metavar="FILE", help="instead of an importance, scores that --save-scores wrote")
    parser.option("--data", metavar="LOADER", help="the batches of package.module:loader, for such an importance")
    parser.option(
        "--loss", metavar="LOSS", help="package.module:loss, a function of the model and a batch, for gradients"
    )


def _prune_options(parser: Parser) -> None:
    parser.option(
        *("--ratio", "-r"),
        type=share,
        action="append",
        metavar="SHARE",
        help="the share of every group's channels to remove, like 0.5; or PATTERN=SHARE for groups, can be repeated",
    )
    _budget_options(parser)
    parser.option(
        "--masks", type=one_of("masks", ("zeros",)), metavar="zeros", help="what is zero, or constant, is removed"
    )
    parser.option(
        "--ignore", action="append", default=[], metavar="PATTERN", help="layers whose outputs stay. Can be repeated."
    )
    _importance_options(parser)
    parser.option(
        "--round-to", type=multiple, metavar="N", help="keep multiples of N channels; auto measures which N pays"
    )
    parser.option("--exact", action="store_true", help="only groups whose removal changes no statistic")
    parser.option(
        "--bias",
        type=one_of("bias", ("prune", "fold")),
        metavar="BIAS",
        help="of removed channels: prune (default) or fold",
    )
    parser.option(
        "--border",
        type=one_of("border", ("carrier", "map")),
        metavar="BORDER",
        help="with --bias fold, at zero padding: carrier (default) or map",
    )
    parser.option("--no-verify", dest="verify", action="store_false", help="leave out the numeric proof")
    parser.option(
        "--repair",
        nargs="?",
        const=True,
        metavar="LOADER",
        help="repair the result on the batches of package.module:loader, by default those of --data",
    )
    parser.option(
        *("--repair-mode",),
        type=one_of("repair mode", MODES),
        metavar="MODE",
        help="what a repair changes: weights (default), outputs, bias or norms",
    )
    _prune_files(parser)


def _prune_files(parser: Parser) -> None:
    parser.option(
        *("--output", "-o"),
        required=True,
        metavar="FILE",
        help="the small model, a .safetensors file; of a Hugging Face model also a new directory, without a suffix",
    )
    parser.option("--save-scores", metavar="FILE", help="the scores of all channels, a .json file, for --scores")
    parser.option("--save-plan", metavar="FILE", help="the plan that was carried out, a .json file")


def _verify_options(parser: Parser) -> None:
    _outputs_option(parser)
    known = "default: 1e-09 in float64, 1e-04 where only float32 runs, 0.05 in other types"
    parser.option("--tolerance", type=tolerance, metavar="X", help=f"largest relative error that is right ({known})")


def _export_options(parser: Parser) -> None:
    parser.option("--output", "-o", required=True, metavar="FILE", help="the file, .onnx or .pt2")
    parser.option("--dynamic-batch", action="store_true", help="take any size of dimension 0 of all inputs")
    parser.option("--opset", type=integer(18), metavar="N", help="the version of the ONNX operators")
    parser.option("--tolerance", type=tolerance, metavar="X", help="largest relative error (default: by the dtype)")
    parser.option("--no-verify", dest="verify", action="store_false", help="leave out running the file")


def _stream_options(parser: Parser) -> None:
    parser.option("directory", metavar="DIR", help="a checkpoint: safetensors files, their index and config.json")
    parser.option("--plan", metavar="FILE", help="the plan that --save-plan or record(small).plan wrote; without one:")
    parser.option("--keep", type=kept, action="append", metavar="KEY=AMOUNT", help="what stays, like params=0.6")
    parser.option("--ratio", type=share, action="append", metavar="SHARE", help="the share of channels to remove")
    parser.option(
        *("--importance",),
        type=one_of("importance", ("l1", "l2", "random")),
        metavar="NAME",
        help="l2 (default) or l1, read from the files in one pass, or random",
    )
    parser.option("--uniform", type=one_of("uniform", ("config",)), metavar="config", help="what the config can say")
    parser.option("--round-to", type=multiple, metavar="N", help="keep multiples of N channels")
    parser.option("--output", "-o", required=True, metavar="OUT", help="the directory of the result")
    parser.option("--memory", metavar="SIZE", help='the most memory for tensors, like "2 GB"')
    parser.option("--workers", type=integer(1), metavar="N", help="threads (default: as many as processors, at most 4)")
    parser.option("--shard-size", default="5 GB", metavar="SIZE", help='the largest size of a file (default "5 GB")')
    parser.option("--checksum", action="store_true", help="write SHA256SUMS, for sha256sum -c")


def _measure_options(parser: Parser) -> None:
    parser.option(
        *("--score",),
        metavar="FUNCTION",
        help="package.module:function, which takes a model and returns a number of which more is better; without it "
        "the error of the outputs, on samples of --repair that are held out",
    )
    parser.option("--repair", metavar="LOADER", help="score repaired models too, on batches of package.module:loader")
    parser.option(
        *("--repair-mode",),
        type=one_of("repair mode", MODES),
        metavar="MODE",
        help="what a repair changes: weights (default), outputs, bias or norms",
    )
    _importance_options(parser)
    parser.option(
        "--ignore", action="append", default=[], metavar="PATTERN", help="layers whose outputs stay. Can be repeated."
    )
    parser.option("--round-to", type=integer(1), metavar="N", help="keep multiples of N channels")
    parser.option("--file", metavar="FILE", help="a .json file, from which a killed run goes on")
    parser.option("--plot", metavar="FILE", help="a picture, .png, .svg or .pdf")


def _sensitivity_options(parser: Parser) -> None:
    parser.option(
        "--ratios", type=shares, default=(0.1, 0.3, 0.5, 0.7, 0.9), metavar="A,B", help="shares to remove (0.1,...,0.9)"
    )
    parser.option(
        "--groups", action="append", metavar="PATTERN", help="the groups to look at (default all). Can be repeated."
    )
    _measure_options(parser)


def _pareto_options(parser: Parser) -> None:
    parser.option(
        "--budgets", type=amounts, default=(0.9, 0.7, 0.5, 0.3, 0.15), metavar="A,B", help="what stays (0.9,...,0.15)"
    )
    parser.option(
        *("--key",),
        type=one_of("cost", MEASURES),
        default="macs",
        metavar="KEY",
        help=f"the cost that budgets limit: {', '.join(MEASURES)} (default macs)",
    )
    scopes = [name for name in SCOPES if name != SEARCH]
    parser.option("--scope", type=one_of("scope", scopes), metavar="SCOPE", help=f"{', '.join(scopes)} (default local)")
    _limit_options(parser)
    _measure_options(parser)


def _summary_options(parser: Parser) -> None:
    parser.option(
        *("--score",),
        metavar="FUNCTION",
        help="package.module:function, which takes a model and returns a number, such as its accuracy",
    )
    parser.option(
        "--rounds", type=integer(0), default=20, metavar="N", help="measurements of the latency (20); 0 for none"
    )


PARTS: dict[str, tuple[Callable[[Parser], None], ...]] = {
    "inspect": (_model, _model_options, _analysis_options),
    "prune": (_model, _model_options, _analysis_options, _prune_options),
    "verify": (_model, _small, _model_options, _verify_options),
    "export": (_model, partial(_small, nargs="?"), _model_options, _export_options),
    "summary": (_model, _small, _model_options, _summary_options),
    "sensitivity": (_model, _model_options, _sensitivity_options),
    "pareto": (_model, _model_options, _pareto_options),
    "stream": (_stream_options,),
    "diff": (_plans,),
}
"""Command -> the functions that add its arguments and options, in the order of its help."""


def reports_findings(command: str) -> bool:
    """True if a command reports an analysis, which has more formats than other results."""
    return _analysis_options in PARTS[command]


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError:
        known = ("cpu", "cuda", "mps", "xpu", "meta")
        meant = {"gpu": "cuda", "nvidia": "cuda"}.get(text.lower(), text)
        hint = f'did you mean "{meant}"?' if meant in known else nearest(text, known)
        raise argparse.ArgumentTypeError(f'there is no device "{text}": {hint}') from None
