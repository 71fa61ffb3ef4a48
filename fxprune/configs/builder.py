"""A model's class, built from a config: shapes, attributes and buffers, without memory for weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxprune.capture.process_state import same_random_state, silence
from fxprune.capture.tensors import constants_of
from fxprune.configs.fields import Data, FieldPath

LONGEST = 200
"""The most characters of an error of a class that are told."""


class NotBuiltError(Exception):
    """A class raised on a config. The text says how."""


def has_config(model: Any) -> bool:
    """True for a model that is made from a config, and can save both."""
    return isinstance(model, nn.Module) and is_config(getattr(model, "config", None)) and _saves(model)


def is_config(value: Any) -> bool:
    """True for an object that can be written as data, and whose class makes such objects from data."""
    return callable(getattr(value, "to_dict", None)) and callable(getattr(type(value), "from_dict", None))


def _saves(model: nn.Module) -> bool:
    return callable(getattr(model, "save_pretrained", None))


class Built:
    """A model built from a config. Its parameters have shapes alone, its buffers have values.

    data: of the config.
    """

    def __init__(self, data: Data, model: nn.Module) -> None:
        self.data, self.model = data, model

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Every parameter and buffer, by every name."""
        parameters = self.model.named_parameters(remove_duplicate=False)
        return {**dict(parameters), **dict(self.model.named_buffers(remove_duplicate=False))}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter and buffer, by every name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @cached_property
    def computed(self) -> Mapping[str, torch.Tensor]:
        """The tensors that no file has, so that loading leaves them as they were built.

        These are the buffers outside `state_dict`, tensors in attributes, and what the class itself does not save.
        """
        left_out: Any = getattr(self.model, "_keys_to_ignore_on_save", None) or ()
        saved = {id(tensor) for name, tensor in self.tensors.items() if name not in left_out}
        found = {n: t for n, t in self.tensors.items() if n in left_out and id(t) not in saved}
        for path, module in self.model.named_modules():
            for name in module._non_persistent_buffers_set:
                tensor = module._buffers.get(name)
                if tensor is not None:
                    found[f"{path}.{name}".lstrip(".")] = tensor
        known = set(map(id, self.tensors.values()))
        return found | {name: tensor for name, tensor in constants_of(self.model) if id(tensor) not in known}


def difference(model: nn.Module, built: Built) -> str:
    """The first way in which a model is not what its class makes of its config; "" if there is none.

    Compared are the shapes, and the numbers of buffers that `state_dict` leaves out: loading computes them again.
    """
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name in own.keys() ^ built.shapes.keys():
        return f'"{name}" is only in the {"model" if name in own else "class"}'
    for name, tensor in own.items():
        if tuple(tensor.shape) != built.shapes[name]:
            return f'"{name}" has shape {tuple(tensor.shape)}, the class gives it {built.shapes[name]}'
    own = {**dict(constants_of(model)), **own}
    for name, made in built.computed.items():
        known = name in own and "meta" not in (own[name].device.type, made.device.type)
        if known and not torch.equal(own[name].cpu(), made.to(own[name].dtype)):
            return f'"{name}" has other numbers than the class computes'
    return ""


class Builder:
    """Builds the class of a model from configs; each config once.

    missing: the fields that the class has asked for and that the config does not have. count: of the models built.
    finish: changes each model that is built, before anything is read from it. data: of the first config.
    """

    def __init__(
        self, model: nn.Module, *, data: Data | None = None, finish: Callable[[nn.Module], nn.Module] | None = None
    ) -> None:
        self.kind: type[nn.Module] = type(model)
        config: Any = model.config
        self.config, self.data = config, config.to_dict() if data is None else data
        self._finish = finish
        self.count = 0
        self.missing: dict[FieldPath, None] = {}
        self._known: dict[str, Built | NotBuiltError] = {}
        self._accepted: dict[str, bool] = {}

    def build(self, data: Data) -> Built:
        """The model of a config. Raises `NotBuiltError` if its class raises."""
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in self._known:
            self.count += 1
            try:
                self._known[key] = Built(data, self._made(data))
            except Exception as error:  # whatever a class raises on a config that it cannot be built from
                self._known[key] = NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}")
        found = self._known[key]
        if isinstance(found, NotBuiltError):
            raise found
        return found

    def accepts(self, data: Data) -> bool:
        """True if there is a config of this data; its class may still raise."""
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in self._accepted:
            try:
                with silence():
                    type(self.config).from_dict(copy.deepcopy(data))
                self._accepted[key] = True
            except Exception:  # whatever a config raises on data that it refuses
                self._accepted[key] = False
        return self._accepted[key]

    def _made(self, data: Data) -> nn.Module:
        with silence(), same_random_state():
            config = type(self.config).from_dict(copy.deepcopy(data))
            _copy_private(self.config, config)
            with _EmptyOnMeta(), _Missing(config) as missing:
                made = self.kind(config)
            self.missing |= missing.names
            return made if self._finish is None else self._finish(made)


def built_from(kind: Any, data: Data) -> nn.Module:
    """A model of a class with the attribute `config_class`, built from the data of a config; weights have no memory.

    Raises `NotBuiltError` if the class raises.
    """
    try:
        with silence(), same_random_state():
            config = kind.config_class.from_dict(copy.deepcopy(data))
            with _EmptyOnMeta():
                made: nn.Module = kind(config)
                return made.eval()
    except Exception as error:  # whatever a class raises on a config that it cannot be built from
        raise NotBuiltError(f"{type(error).__name__}: {error}") from None


class _Missing:
    """Notes the attributes that a class asks of its config and does not find, such as `getattr(config, "head_dim", 0)`.

    A context manager. names: the keys that lead to the config, and the name -> None.
    """

    def __init__(self, config: Any) -> None:
        self.kinds = {type(part): keys for keys, part in _configs_in(config)}
        self.names: dict[FieldPath, None] = {}

    def __enter__(self) -> _Missing:
        for kind in self.kinds:
            if not hasattr(kind, "__getattr__"):
                kind.__getattr__ = self._note_for(kind)
        return self

    def __exit__(self, *error: object) -> None:
        for kind in self.kinds:
            if getattr(vars(kind).get("__getattr__"), "__module__", "") == __name__:
                del kind.__getattr__

    def _note_for(self, kind: Any) -> Any:
        def note(config: Any, name: str) -> Any:
            if not name.startswith("_"):
                self.names[(*self.kinds[kind], name)] = None
            raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")

        return note


def _configs_in(config: Any, keys: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """A config and those inside it, with the keys that lead to them."""
    yield keys, config
    for name, value in vars(config).items():
        if is_config(value):
            yield from _configs_in(value, (*keys, name))


_NUMBERS = frozenset("normal_ uniform_ bernoulli_ exponential_ zero_ fill_ copy_ mul_ add_ div_ clamp_ erfinv_".split())
"""Methods that give a tensor other numbers."""


class _EmptyOnMeta(TorchFunctionMode):
    """Memory that is not initialised is made on the meta device: that of weights. Everything else is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        elif getattr(func, "__name__", "") in _NUMBERS and args and args[0].device.type == "meta":
            return args[0]  # torch would import its compiler first
        return func(*args, **kwargs)


def _copy_private(config: Any, made: Any) -> None:
    """Give a config what another one holds beside its fields, such as the implementation of attention. Changes it."""
    for name, value in vars(config).items():
        other = vars(made).get(name)
        if is_config(value) and is_config(other):
            _copy_private(value, other)
        elif name.startswith("_") and isinstance(value, str | dict | None) and other != value:
            vars(made)[name] = copy.deepcopy(value)
