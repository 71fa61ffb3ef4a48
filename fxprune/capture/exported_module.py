"""The modules that an exported graph runs with: copies of the model's modules, most of them without their forward."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, conv, instancenorm

from fxprune.capture.captured import fetch
from fxprune.capture.module_copy import copy_module
from fxprune.capture.tensors import Tensors

_LAYERS = (
    *(conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.PReLU),
    *(batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)


def containers(model: nn.Module) -> nn.Module:
    """The model's modules as plain containers with the same parameters and buffers.

    Layers of torch that the rewrite knows (see `_LAYERS`) are copied whole, with their class and forward.
    """
    made: dict[int, nn.Module] = {}

    def clone(original: nn.Module) -> nn.Module:
        if id(original) in made:
            return made[id(original)]
        if _is_layer(original):
            new = copy_module(original, lambda tensor: tensor)
        else:
            new = nn.Module()
            new.training = original.training
            for kind in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                new.__dict__[kind] = original.__dict__[kind].copy()
        made[id(original)] = new
        new.__dict__["_modules"] = {k: None if m is None else clone(m) for k, m in original._modules.items()}
        return new

    return clone(model)


def _is_layer(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    own = type(module).__module__.startswith("torch.nn.modules.") and not module._modules
    weighted = "weight" in module._parameters or isinstance(module, (batchnorm._BatchNorm, instancenorm._InstanceNorm))
    return isinstance(module, _LAYERS) and own and weighted and not hooked


def add_constants(root: nn.Module, graph_module: fx.GraphModule) -> None:
    """Add everything to `root` that the graph of `graph_module` reads and `root` does not have yet. Changes `root`.

    Tensors become buffers that `state_dict` leaves out; other values become attributes.
    """
    known = set(Tensors.of(root))
    for node in graph_module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name in known:
            continue
        known.add(name)
        path, _, last = name.rpartition(".")
        owner = root
        for part in path.split(".") if path else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        value = fetch(graph_module, name)
        if isinstance(value, torch.Tensor):
            owner.__dict__.pop(last, None)
            owner.register_buffer(last, value.detach() if isinstance(value, nn.Parameter) else value, persistent=False)
        else:
            setattr(owner, last, value)
