"""The numbers that a rewrite has changed, besides the tensors, for the record.

They are found by comparing the small model with the original. So the functions that recount sizes need not report them,
and none is forgotten. Biases and maps for constants are no sizes, and are left out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import ITEMS, OF_EVERY_MODULE, set_attribute, setting_name
from fxprune.capture.containers import attributes_of, found_in, has_many_parts, items_of, with_part
from fxprune.capture.tensors import constants_of
from fxprune.planning.sizes import Size
from fxprune.rewrite.constants import STANDS_FOR


def derived(findings: Findings, small: nn.Module) -> tuple[Size, ...]:
    """Every number that the rewrite changed, with its place: attributes, arguments in the graph, constants, classes."""
    made = [*_modules(findings.captured.module, small), *_constants(findings, small)]
    if isinstance(small, fx.GraphModule):
        made += _nodes(findings.captured.graph, small.graph)
    return tuple(made)


def numbers(module: nn.Module, seen: dict[int, Any] | None = None) -> dict[str, Any]:
    """The attributes of a module that are numbers, or lists or tuples of numbers, also inside other containers.

    Their names are as in code: `heads`, `axes['heads']`, `config.heads`, and `['heads']` in a module that is a dict.

    seen: the containers that were looked at before, by id; they are left out.
    """
    if isinstance(module, fx.GraphModule):  # its attributes belong to the graph, and hold no sizes
        return {}
    return _found(module, _is_number, {} if seen is None else seen)


def numbers_or_none(module: nn.Module) -> dict[str, Any]:
    """The `numbers` of a module, and what is None in the same places, such as a field of a config."""
    return {} if isinstance(module, fx.GraphModule) else _found(module, _is_number_or_none, {})


def number_of_class(module: nn.Module, name: str) -> Any:
    """A number in the body of a module's class, such as `width = 64`; None if there is none of this name."""
    found = inspect.getattr_static(type(module), name, None)
    return found if _is_number(found) else None


def _found(module: nn.Module, wanted: Callable[[Any], bool], seen: dict[int, Any]) -> dict[str, Any]:
    return {
        setting_name(name, keys): value
        for name, held in _places(module)
        for keys, value in found_in(held, wanted, seen)
    }


def _places(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module by name, those in slots too, and under `ITEMS` the items of one that is a dict."""
    for name, held in attributes_of(module).items():
        if name not in OF_EVERY_MODULE:
            yield name, held
    if isinstance(module, dict):
        yield ITEMS, dict(dict.items(module))


def set_number(module: nn.Module, name: str, value: Any) -> None:
    """Give one of the `numbers` of a module, by its name there, a new value."""
    for attribute, held in _places(module):
        if name.startswith(attribute):
            for keys, _ in found_in(held, _is_number_or_none, {}):
                if setting_name(attribute, keys) == name:
                    changed = with_part(held, keys, value) if keys else value
                    if attribute == ITEMS:
                        table: Any = module
                        dict.__setitem__(table, keys[0], changed[keys[0]])
                    else:
                        set_attribute(module, attribute, changed)
                    return
    set_attribute(module, name, value)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return not has_many_parts(value) and all(
            not isinstance(v, (list, tuple)) and _is_number(v) for v in items_of(value)
        )
    return type(value) in (int, float, bool) and math.isfinite(value)


def _modules(before: nn.Module, small: nn.Module) -> Iterator[Size]:
    modules = dict(before.named_modules())
    seen: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for path, module in small.named_modules():
        old = modules.get(path)
        if type(module) is not type(old) and not isinstance(module, fx.GraphModule):
            yield Size("class", path, "", _class(old), _class(module))
        if old is None:
            continue
        had = numbers(old, seen[0])
        for name, value in numbers(module, seen[1]).items():
            before = had[name] if name in had else number_of_class(old, name)
            if value != before:
                yield Size("attribute", path, name, _plain(before), _plain(value))


def _class(module: Any) -> str | None:
    return None if module is None else f"{type(module).__module__}.{type(module).__qualname__}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _constants(findings: Findings, small: nn.Module) -> Iterator[Size]:
    """The tensors in attributes that are neither parameters nor buffers, if their shapes have changed."""
    held = {name: tensor for name, tensor in findings.tensors.items() if name not in findings.subject.tensors}
    found = dict(constants_of(small)) if held else {}
    if held and isinstance(small, fx.GraphModule):
        found |= dict(small.named_buffers())
    for name, tensor in held.items():
        now = found.get(name)
        if now is not None and now.shape != tensor.shape:
            yield Size("constant", name, "", list(tensor.shape), list(now.shape))


def _nodes(before: fx.Graph, after: fx.Graph) -> Iterator[Size]:
    olds = {node.name: node for node in before.nodes}
    for node in after.nodes:
        if STANDS_FOR in node.meta:
            continue
        old = olds.pop(node.name, None)
        if old is None:
            yield Size("node", node.name, "", None, node.format_node() or node.op)
            continue
        if node.target != old.target:
            yield Size("argument", node.name, "target", _text(old.target), _text(node.target))
        yield from _arguments(node.name, "args", old.args, node.args)
        kwargs = {k: v for k, v in node.kwargs.items() if k in old.kwargs or _text(v) is not None}
        yield from _arguments(node.name, "kwargs", old.kwargs, kwargs)
    for name, old in olds.items():
        yield Size("node", name, "", old.format_node() or old.op, None)


def _arguments(node: str, place: str, old: Any, new: Any) -> Iterator[Size]:
    """The arguments of a node that differ, inside lists, tuples and dicts. place: where they stand, as "args[1]"."""
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _arguments(node, f"{place}[{i}]", a, b)
    elif isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _arguments(node, f"{place}[{key!r}]", old[key], new[key])
    elif (a := _text(old)) != (b := _text(new)) or type(a) is not type(b):
        yield Size("argument", node, place, a, b)


def _text(value: Any) -> Any:
    """An argument as data for JSON; a value that JSON cannot hold becomes text."""
    if isinstance(value, fx.Node):
        return value.meta.get(STANDS_FOR, f"%{value.name}")
    if value is None or type(value) in (int, bool, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, (tuple, list)):
        return [_text(v) for v in value]
    if isinstance(value, dict):
        return ", ".join(f"{k}={_text(v)}" for k, v in value.items())
    if isinstance(value, slice):
        return ":".join("" if part is None else str(_text(part)) for part in (value.start, value.stop, value.step))
    return getattr(value, "__name__", None) or str(value)
