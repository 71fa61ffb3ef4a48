"""The hooks of accelerate on a model: what they say of its weights, and the same hooks on a smaller model."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import CaptureError
from fxprune.offloaded.places import OWN_FILES, Folders, InFile, InMemory, OfMap, place_of
from fxprune.offloaded.stored import StoredTensor

HOOK, FORWARD = "_hf_hook", "_old_forward"
"""The attributes of a module with a hook of accelerate, and the forward that it had before."""

ADDED = ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron")
"""Methods that accelerate puts on a dispatched model, which warn."""


def _accelerate(part: str) -> Any:
    """A module of the library whose hooks are on the model."""
    return importlib.import_module(f"accelerate.{part}")


def is_dispatched(model: Any) -> bool:
    """True if accelerate moves weights or inputs of a model between devices."""
    return isinstance(model, nn.Module) and any(_aligning(module) for module in model.modules())


def refuse_dispatched(model: Any, function: str) -> None:
    """Raises `CaptureError` for a model that accelerate has dispatched, where its weights have to be in it."""
    if is_dispatched(model):
        raise CaptureError(
            f"{function} does not work on a dispatched model",
            at=type(model).__name__,
            why="accelerate keeps its weights elsewhere, and what is written into the model is lost",
            do="load it without device_map, or accelerate.hooks.remove_hook_from_module(model, recurse=True)",
        )


def _hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on a module, one by one."""
    waiting = [module.__dict__.get(HOOK)]
    while waiting:
        hook = waiting.pop(0)
        if hook is not None:
            waiting += getattr(hook, "hooks", ())
            if not hasattr(hook, "hooks"):
                yield hook


def _is_aligning(hook: Any) -> bool:
    return any(kind.__name__ == "AlignDevicesHook" for kind in type(hook).__mro__)


def _aligning(module: nn.Module) -> bool:
    return any(map(_is_aligning, _hooks(module)))


def _names(module: nn.Module, hook: Any) -> list[str]:
    """The names, as the hook has them, of the weights that it keeps elsewhere."""
    if not hook.offload:
        return []
    found = _accelerate("utils").named_module_tensors(
        module, include_buffers=hook.offload_buffers, recurse=hook.place_submodules, remove_non_persistent=True
    )
    return [name for name, _ in found]


@dataclass(frozen=True, eq=False)
class Dispatch:
    """The hooks of a dispatched model.

    hooks: path of a module -> its hook. tensors: id of a tensor of the model -> the one that stands for it in a model
    without hooks.
    """

    hooks: Mapping[str, Any]
    tensors: Mapping[int, StoredTensor]

    def again(self, small: nn.Module, before: Callable[[str], str] = lambda path: path) -> None:
        """Give a small model the hooks, and its weights to these hooks.

        small: with a `StoredTensor` for each of its weights that lie elsewhere. before: a function from the path of a
        module to its path in the model.
        """
        weights = _Weights()
        hooks = {path: self.hooks[before(path)] for path, _ in small.named_modules() if before(path) in self.hooks}
        for path, module in small.named_modules():
            for hook in _parts(hooks.get(path)):
                for name in _names(module, hook):
                    weights.take(small, _joined(path, name))
        _in_place(small)
        made = weights.map()
        for path, module in small.named_modules():
            if path in hooks:
                _attach(module, _copied(hooks[path], module, path, made, weights.tied_maps))
        devices = small.__dict__.get("hf_device_map")
        if devices:
            parts = ["", *(path for path, _ in (*small.named_modules(), *small.named_parameters()))]
            small.__dict__["hf_device_map"] = {path: devices[before(path)] for path in parts if before(path) in devices}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _parts(hook: Any) -> list[Any]:
    """The hooks that one hook is made of."""
    return [] if hook is None else [part for inner in getattr(hook, "hooks", ()) for part in _parts(inner)] or [hook]


@dataclass(eq=False)
class _Weights:
    """The weights of a small model that its hooks keep: in memory by name, and in files.

    tied_maps: id of the map of tied weights of an old hook
    -> that of the new ones.
    """

    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    files: dict[str, InFile] = field(default_factory=dict)
    tied_maps: dict[int, dict[int, Any]] = field(default_factory=dict)
    _meta: dict[int, torch.Tensor] = field(default_factory=dict)
    _kept: list[torch.Tensor] = field(default_factory=list)

    def take(self, small: nn.Module, name: str) -> None:
        """Take the weight of this name out of the model, and leave one without numbers in its place."""
        path, _, last = name.rpartition(".")
        module = small.get_submodule(path)
        table: Any = module._parameters if last in module._parameters else module._buffers
        tensor = table[last]
        if tensor is None or tensor.device.type == "meta":
            return
        self._kept.append(tensor)
        if isinstance(tensor, StoredTensor) and isinstance(tensor.place, OfMap):
            tensor.place = tensor.place.beside(tensor.place.read())
        if not isinstance(tensor, StoredTensor):
            self.memory[name] = tensor.detach().to("cpu")
        elif isinstance(tensor.place, InFile):
            self.files[name] = tensor.place
        else:
            assert isinstance(tensor.place, InMemory)
            self.memory[name] = tensor.place.tensor
        if id(tensor) not in self._meta:
            self._meta[id(tensor)] = without_numbers(tensor)
        table[last] = self._meta[id(tensor)]

    def map(self) -> Any:
        """The map of accelerate with these weights."""
        index = {
            name: {"safetensors_file": str(place.path), "weight_name": "weight"} for name, place in self.files.items()
        }
        made = _accelerate("utils").OffloadedWeightsLoader(state_dict=self.memory, index=index)
        setattr(made, OWN_FILES, dict(self.files))
        return made


def without_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the meta device that stands for another one in a module."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter) or getattr(tensor, "_is_param", False):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    made.__dict__.update({key: value for key, value in tensor.__dict__.items() if key != "_is_param"})
    return made


def _in_place(small: nn.Module) -> None:
    """Put the weights that are on a device of their own, and not offloaded, back into the model."""
    made: dict[int, torch.Tensor] = {}
    for module in small.modules():
        tables: tuple[Any, ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if isinstance(tensor, StoredTensor):
                    if id(tensor) not in made:
                        place = tensor.place
                        values = place.tensor if isinstance(place, InMemory) else place.read()
                        own = without_numbers(tensor)
                        plain = nn.Parameter(values, own.requires_grad) if isinstance(own, nn.Parameter) else values
                        plain.__dict__.update(own.__dict__)
                        made[id(tensor)] = plain
                    table[name] = made[id(tensor)]


def _copied(hook: Any, module: nn.Module, path: str, weights: Any, tied: dict[int, dict[int, Any]]) -> Any:
    """A hook with the weights of another module."""
    made = copy.copy(hook)
    if hasattr(hook, "hooks"):
        made.hooks = tuple(_copied(one, module, path, weights, tied) for one in hook.hooks)
        return made
    if not _is_aligning(hook):
        return made
    if hook.tied_params_map is not None:
        fresh = {tensor.data_ptr(): {} for tensor in weights.state_dict.values()}  # type: ignore[var-annotated]
        made.tied_params_map = tied.setdefault(id(hook.tied_params_map), fresh if hook.tied_params_map else {})
    made.tied_params_names = set(hook.tied_params_names)
    made.param_original_devices, made.buffer_original_devices, made.input_device = {}, {}, None
    if hook.offload:
        made.weights_map = _accelerate("utils").PrefixedDataset(weights, f"{path}." if path else "")
        names = _names(module, hook)
        made.original_devices = {name: hook.original_devices.get(name, torch.device("cpu")) for name in names}
    return made


def _attach(module: nn.Module, hook: Any) -> None:
    """Put a hook on a module whose weights are where the hook wants them."""
    hook.init_hook = lambda given: given
    try:
        _accelerate("hooks").add_hook_to_module(module, hook)
    finally:
        del hook.init_hook


def without_hooks(module: nn.Module) -> None:
    """Take the hooks of accelerate off one module, and leave its weights as they are."""
    if HOOK not in module.__dict__:
        return
    own = module.__dict__
    before = own.pop(FORWARD, None)
    for name in (HOOK, "forward", *ADDED):
        own.pop(name, None)
    if getattr(before, "__func__", None) is not type(module).forward and before is not None:
        own["forward"] = before


def dispatch_of(model: nn.Module) -> Dispatch:
    """The hooks of a dispatched model, and a stand-in for each weight that lies elsewhere.

    Raises `CaptureError` for a graph, and for hooks of other kinds beside those that move weights.
    """
    hooks = {path: module.__dict__[HOOK] for path, module in model.named_modules() if _aligning(module)}
    for path, module in model.named_modules():
        others = [hook for hook in _hooks(module) if not _is_aligning(hook)] if path in hooks else []
        if others or (path in hooks and isinstance(module, fx.GraphModule)):
            raise CaptureError(
                "a dispatched model has a module that cannot be pruned",
                at=f'"{path}"' if path else "the model",
                why=f"accelerate has a {type(others[0]).__name__} on it" if others else "it is a graph",
                do="take the hooks off (accelerate.hooks.remove_hook_from_module), prune, and dispatch the small model",
            )
    return Dispatch(hooks, _stand_ins(model))


def _stand_ins(model: nn.Module) -> dict[int, StoredTensor]:
    """id of each tensor that lies elsewhere -> the tensor that stands for it. Tied weights have one."""
    main = _main_device(model)
    folders, found, same = Folders(), dict[int, StoredTensor](), dict[Any, StoredTensor]()
    for path, module in model.named_modules():
        for hook in _hooks(module):
            for name in _names(module, hook) if _is_aligning(hook) else ():
                tensor = _tensor(module, name)
                place, key = place_of(hook.weights_map, name, folders)
                made = found.get(id(tensor), same.get(key))
                if made is None:
                    made = StoredTensor(tensor, _joined(path, name), place, main)
                    made.__dict__.update(tensor.__dict__)
                found[id(tensor)] = same[key] = made
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in found and tensor.device not in (main, torch.device("meta")):
            found[id(tensor)] = StoredTensor(tensor, name, InMemory(tensor), main)
    return found


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    found: torch.Tensor = getattr(owner, last)
    return found


def _main_device(model: nn.Module) -> torch.device:
    """The device on which the model begins."""
    for module in model.modules():
        for hook in _hooks(module):
            if _is_aligning(hook) and hook.execution_device not in (None, "meta"):
                return torch.device(hook.execution_device)
    return torch.device("cpu")
