"""The words of a command line -> its command and the values of its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import fxprune
from fxprune.cli.commands import COMMANDS
from fxprune.cli.completion import SHELLS, completion
from fxprune.cli.options import PARTS, reports_findings
from fxprune.cli.usage import Parser, UsageError, one_of
from fxprune.errors import nearest
from fxprune.report import FORMATS

ABOUT = {
    "inspect": "Which channels belong together, what one of each costs, what is locked and why.",
    "prune": "Make a model physically smaller, prove it, and write it to a file.",
    "verify": "Compare a small model with its original, the removed slots set to zero, in float64.",
    "export": "Write a model, or a small one, as ONNX or as a program of torch.export.",
    "summary": "Measure a model and its small model: size, multiply-adds, memory, latency, score.",
    "sensitivity": "Measure the score against the share of each group of channels that goes.",
    "pareto": "Measure the score against a cost, over budgets.",
    "stream": "Prune a checkpoint of any size, tensor by tensor, by a plan.",
    "diff": "Say what one plan removes and another keeps.",
}

CODES = """exit codes:
  0    done
  1    an error in the model, its inputs or a file
  2    the command is written wrongly
  3    nothing was pruned, and nothing written
  4    verification failed
  5    a budget could not be met; the file was written
  130  interrupted by Ctrl-C
  141  whoever read the output has gone
"""

COMPLETION = "--print-completion"
"""The option that prints the completion of a shell."""

EXAMPLE = """example:
  fxprune prune nets:Net --input 1x3x32x32 --ratio 0.5 -o small.safetensors
"""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the options of a command line. Raises `UsageError`, and `SystemExit` after --help and --version."""
    parsers = {name: _command(name) for name in COMMANDS}
    usage = "fxprune COMMAND [options]\n       fxprune [-h] [--version]"
    about = "Structured pruning of PyTorch models."
    top = Parser(prog="fxprune", usage=usage, description=about, epilog=_epilog(ABOUT))
    top.option("--version", action="version", version=f"fxprune {fxprune.__version__}, torch {torch.__version__}")
    top.option("command", metavar="COMMAND", help=argparse.SUPPRESS)
    if not words:
        raise UsageError(
            "say what to do", why=f"the commands are {', '.join(COMMANDS)}", do="`fxprune --help` says more"
        )
    if words[0] == COMPLETION:
        print(completion(" ".join(words[1:]), ABOUT, _add_all))
        raise SystemExit(0)
    if words[0] in parsers:
        parser = parsers[words[0]]
        parser.refuse_unknown(words[1:], {name: other.known for name, other in parsers.items()})
        options = parser.parse_intermixed_args(words[1:])  # [SMALL] may stand after options
        options.command = words[0]
        options.seeded = getattr(options, "seed", None) is not None
        options.seed = options.seed if options.seeded else 0
        options.format = "json" if options.json else options.format
        return options
    if words[0].startswith("-"):
        known = [*top.known, "-h", COMPLETION]
        if words[0] in known:
            top.parse_args(words[:1])
        why, do = nearest(words[0], known), "options stand after the command"
        raise UsageError(f"there is no option {words[0]} before the command", why=why, do=do)
    do = "`fxprune --help` lists the commands"
    why = nearest(words[0], COMMANDS)
    if words[0] in ("report", "analyze", "plot"):
        why = "`fxprune inspect` reports on a model; --html writes a page"
    raise UsageError(f'there is no command "{words[0]}"', why=why, do=do)


def _epilog(about: dict[str, str]) -> str:
    listed = "\n".join(f"  {name:<11} {text}" for name, text in about.items())
    shells = f"`fxprune {COMPLETION} {'|'.join(SHELLS)}` prints the completion of a shell.\n"
    return f"commands (`fxprune COMMAND --help` says more):\n{listed}\n\n{CODES}\n{EXAMPLE}\n{shells}"


def _command(name: str) -> Parser:
    """Returns the parser of one command."""
    parser = Parser(prog=f"fxprune {name}", description=ABOUT[name], epilog=CODES)
    _add_all(name, parser)
    return parser


def _add_all(name: str, parser: Parser) -> None:
    """Adds the arguments and options of a command."""
    for add in PARTS[name]:
        add(parser)
    formats = FORMATS if reports_findings(name) else ("text", "json")
    listed = f"{', '.join(formats)} (default text)"
    parser.option("--format", type=one_of("format", formats), default="text", metavar="FORMAT", help=listed)
    parser.option("--json", action="store_true", help="the same as --format json")
    parser.option("-q", "--quiet", action="store_true", help="no progress on stderr, only warnings and errors")
    parser.option("--debug", action="store_true", help="show the traceback of an error")
