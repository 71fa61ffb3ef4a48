"""Models by name: `package.module:callable`, `torchvision:NAME`, `timm:NAME`, a directory. Nothing is downloaded."""

from __future__ import annotations
import __future__

import contextlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fxprune.cli.pretrained import is_pretrained, load_pretrained
from fxprune.cli.usage import UsageError
from fxprune.errors import FxpruneError, nearest

LIBRARIES = ("torchvision", "timm")

FORMS = "MODEL is package.module:callable, torchvision:NAME, timm:NAME or a directory of save_pretrained"

_FORM = "name it in one of these forms"
_OWN = "write a function that makes the model, and name it as package.module:function"
_PICKLE = ("loading a whole model from a pickle runs code that is in the file", _OWN)
_WEIGHTS = "it holds weights, and no code that makes a model of them"
FILES = {
    ".pt2": (
        "torch.export.load unpickles, and runs any function of torch that the file names",
        'if you trust the file, name a module that does it: net = torch.export.load("FILE").module()',
    ),
    ".pt": (f"{_PICKLE[0]}, and a state_dict is no model", "name its class, and add --weights FILE for a state_dict"),
    ".pth": (f"{_PICKLE[0]}, and a state_dict is no model", "name its class, and add --weights FILE for a state_dict"),
    ".pkl": _PICKLE,
    ".safetensors": (
        _WEIGHTS,
        "name its class, and add --weights FILE; the file of a small model goes to verify, export, diff or --plan",
    ),
    ".json": ("a plan says which channels are removed, not of which model", "name the original, and add --plan FILE"),
    ".onnx": ("a graph of ONNX cannot be pruned here", "name the model that it was made from"),
}
"""Suffix of a file that is no model -> why it is none, and what to do instead."""


def build(spec: str, args: Mapping[str, Any]) -> tuple[nn.Module, bool]:
    """Returns the model, and True if it is from a library and has random weights.

    spec: the name of the model. args: arguments of its callable. Raises `UsageError` for a name of a wrong form, and
    `FxpruneError` if there is no such model or its code raises.
    """
    if is_pretrained(spec):
        return load_pretrained(spec, args), False
    _refuse_file(spec)
    package, colon, name = spec.partition(":")
    if not colon or not name or not package or package.endswith(".py"):
        module = os.path.splitext(package)[0].replace(os.sep, ".")
        hint = f"to name something in a file, say {module}:{name or 'NAME'}" if package.endswith(".py") else _FORM
        raise UsageError(f'"{spec}" names no model', why=FORMS, do=hint)
    if package == "torchvision":
        return _torchvision(name, args)
    if package == "timm":
        return _timm(name, args)
    if not all(part.isidentifier() for part in (*package.split("."), *name.split("."))):
        raise UsageError(f'"{spec}" names no model', why=FORMS, do=_FORM)
    return _from_callable(spec, _attribute(package, name), args), False


def _refuse_file(spec: str) -> None:
    """Raises `UsageError` for a file that a model cannot be made of, or not without running what is in it."""
    suffix = os.path.splitext(spec)[1].lower()
    if suffix in FILES:
        why, do = FILES[suffix]
        raise UsageError(f'"{spec}" names no model', why=why, do=do.replace("FILE", spec))


def batches(spec: str, option: str) -> Any:
    """The batches that a name in `package.module:loader` stands for; a callable is called. option: its option.

    Raises `UsageError` for a name of a wrong form, and `FxpruneError` if there is no such thing or its code raises.
    """
    found = _named(spec, "batches", "loader", option)
    do = "name a list of batches, a data loader, or a function without arguments that returns one"
    if callable(found) and not hasattr(found, "__iter__"):
        needed = _needed(found)
        if needed:
            why = f"{spec} takes {', '.join(map(repr, needed))}, a loader takes nothing"
            raise FxpruneError(f"{option} {spec} names no loader", why=why, do=do)
        with _errors_with_line(f'"{spec}"'):
            found = found()
    if isinstance(found, torch.Tensor) or not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise FxpruneError(f"{option} {spec} names no batches", why=f"it is {_kind(found)}", do=do)
    return found


def _kind(value: Any) -> str:
    return "one tensor" if isinstance(value, torch.Tensor) else f"of the type {type(value).__name__}"


def _needed(found: Any) -> list[str]:
    """The arguments of a callable that have no default."""
    try:
        known = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return []  # a function in C has no signature
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in known if p.default is p.empty and p.kind not in stars]


def function(spec: str, option: str) -> Any:
    """The function that a name in `package.module:function` stands for. Raises as `batches`."""
    return _named(spec, "function", "loss" if option == "--loss" else "function", option)


def _named(spec: str, what: str, example: str, option: str) -> Any:
    package, colon, name = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*package.split("."), *name.split("."))):
        why = f"{'batches are' if what == 'batches' else 'it is'} named as package.module:{example}"
        raise UsageError(f'{option} "{spec}" names no {what}', why=why, do=f"say {option} package.module:{example}")
    return _attribute(package, name)


def _attribute(package: str, name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(package)
    for part in name.split("."):
        if not hasattr(found, part):
            what = f'module "{package}"' if isinstance(found, ModuleType) else f'"{package}:{name}"'
            public = [other for other in vars(found) if not other.startswith("_")]
            public.sort(key=lambda other: _is_imported(vars(found)[other], package))
            raise FxpruneError(f'{what} has no "{part}"', why=nearest(part, public), do="name something that is there")
        found = getattr(found, part)
    return found


def _is_imported(value: Any, package: str) -> bool:
    """True for a module, for a class or a function of another module, and for a name from `__future__`."""
    named = isinstance(value, type) or inspect.isroutine(value)
    return isinstance(value, ModuleType | __future__._Feature) or (named and value.__module__ != package)


def _import(package: str) -> ModuleType:
    try:
        with _errors_with_line(f'importing "{package}"'):
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if package != missing and not package.startswith(f"{missing}."):
            why = f'it imports "{missing}", which is not installed'
            raise FxpruneError(f'module "{package}" cannot be imported', why=why, do=f"install {missing}") from error
        parent, _, _ = missing.rpartition(".")
        places = getattr(sys.modules[parent], "__path__", []) if parent else [os.getcwd()]
        names = [f"{parent}.{m.name}" if parent else m.name for m in pkgutil.iter_modules(places)]
        where = f'package "{parent}"' if parent else "the current directory"
        why = f"in {where}: {nearest(missing, names)}"
        raise FxpruneError(
            f'there is no module "{missing}"', why=why, do="run the command where the module is, or set PYTHONPATH"
        ) from None


def _from_callable(spec: str, found: Any, args: Mapping[str, Any]) -> nn.Module:
    if isinstance(found, nn.Module):
        if args:
            raise FxpruneError(f'"{spec}" is a model, not a callable', why="--arg was given", do="leave out --arg")
        return found
    if not callable(found):
        raise FxpruneError(
            f'"{spec}" is no callable', why=f"it is a {type(found).__name__}", do="name a class or function"
        )
    return _call(spec, found, args)


def _call(spec: str, found: Any, args: Mapping[str, Any]) -> nn.Module:
    """Returns the model that a callable makes. Raises `FxpruneError` if it does not take the arguments."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        signature = None  # a function in C has none
    if signature is not None:
        try:
            signature.bind(**args)
        except TypeError as error:
            names = [
                p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            ]
            unknown = next((name for name in args if name not in names), None)
            hint = nearest(unknown, names) if unknown is not None else f"its arguments are {', '.join(names)}"
            do = "give arguments as --arg NAME=VALUE"
            raise FxpruneError(f'"{spec}" cannot be called', why=f"{error}; {hint}", do=do) from None
    with _errors_with_line(f'"{spec}"'):
        model = found(**args)
    if not isinstance(model, nn.Module):
        raise FxpruneError(
            f'"{spec}" makes no model',
            why=f"it returns a {type(model).__name__}, no torch.nn.Module",
            do="name a function or a class that makes a torch.nn.Module",
        )
    return model


@contextlib.contextmanager
def _errors_with_line(what: str) -> Iterator[None]:
    """Turns errors of the user's code into errors with its line, except missing modules and errors of fxprune."""
    try:
        yield
    except (ModuleNotFoundError, FxpruneError):
        raise
    except (Exception, SystemExit) as error:
        theirs = [step for step in traceback.extract_tb(error.__traceback__) if step.filename != __file__]
        at = f"{os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno}" if theirs else ""
        if isinstance(error, SyntaxError) and error.filename:
            at = f"{os.path.basename(error.filename)}:{error.lineno}"
        text = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise FxpruneError(f"{what} raised an error", at=at, why=why, do="--debug shows all of it") from error


def _library(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise FxpruneError(f"{name} is not installed", do=f"pip install {name}")
    try:
        return importlib.import_module(f"{name}.models" if name == "torchvision" else name)
    except (ImportError, RuntimeError, OSError) as error:
        text = str(error).strip().splitlines()
        raise FxpruneError(
            f"{name} cannot be imported",
            why=f"{type(error).__name__}: {text[0] if text else ''}",
            do="install builds of torch and torchvision that were made for each other",
        ) from error


def _torchvision(name: str, args: Mapping[str, Any]) -> tuple[nn.Module, bool]:
    models = _library("torchvision")
    names = models.list_models()
    if name not in names:
        raise FxpruneError(
            f'torchvision has no model "{name}"',
            why=nearest(name, names),
            do="`torchvision.models.list_models()` lists them",
        )
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # it would be downloaded
    made = {**options, **args}
    return _call(f"torchvision:{name}", builder, made), made["weights"] is None


def _timm(name: str, args: Mapping[str, Any]) -> tuple[nn.Module, bool]:
    timm: Any = _library("timm")
    if not timm.is_model(name):
        raise FxpruneError(
            f'timm has no model "{name}"', why=nearest(name, timm.list_models()), do="`timm.list_models()` lists them"
        )
    with _errors_with_line(f'"timm:{name}"'):
        model: nn.Module = timm.create_model(name, **{"pretrained": False, **args})
    return model, not args.get("pretrained", False)
