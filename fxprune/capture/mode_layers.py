"""The layers of torch that compute something else in training than in evaluation mode."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from fxprune.capture.modes import MODES, modules_reading_training


def fixed_mode_note(model: nn.Module, captured: fx.GraphModule | None = None) -> str:
    """A sentence about the layers that a graph has in one mode, that of the model; "" if there is none.

    captured: the exported graph. Layers of torch that it never calls are not named.

    >>> fixed_mode_note(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval())
    'the graph is that of evaluation mode: what 1 (Dropout) would do otherwise in training mode is not in it'
    >>> fixed_mode_note(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).eval())
    ''
    """
    own, mode = set(modules_reading_training(model)), model.training
    called = None if captured is None else _called(model, captured)
    found = [
        f"{path or 'the model'} ({type(module).__name__})"
        for path, module in model.named_modules()
        if path in own or (module.training == mode and layer_reads_mode(module) and _may_run(module, called))
    ]
    if not found:
        return ""
    named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
    return f"{FIXED_MODE} {MODES[mode]} mode: what {named} would do otherwise in {MODES[not mode]} mode is not in it"


def _may_run(layer: nn.Module, called: set[nn.Module] | None) -> bool:
    """True unless it is known that no forward calls a layer. A parametrization runs without a call of the layer."""
    return called is None or layer in called or not isinstance(layer, _CALLED)


def _called(model: nn.Module, captured: fx.GraphModule) -> set[nn.Module] | None:
    """The modules whose operations an exported graph has; None if a name in it is none of the model's."""
    graphs = [module.graph for module in captured.modules() if isinstance(module, fx.GraphModule)]
    stacks = (node.meta.get("nn_module_stack", {}) for graph in graphs for node in graph.nodes)
    paths = {path.partition("@")[0] for stack in stacks for path, _ in stack.values()}  # "drop@1" is a second call
    try:
        return {model.get_submodule(path) for path in paths}
    except AttributeError:
        return None


_CALLED = (_DropoutNd, _NormBase, nn.RNNBase, nn.MultiheadAttention, nn.RReLU)
"""Layers of torch that do nothing unless they are called."""

FIXED_MODE = "the graph is that of"
"""The beginning of the sentence of `fixed_mode_note`."""


def layer_reads_mode(module: nn.Module) -> bool:
    """True for a layer of torch, or one of a class derived from it, that computes by its mode with its settings.

    >>> [layer_reads_mode(layer) for layer in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))]
    [True, False]
    >>> [layer_reads_mode(nn.GRU(2, 2, layers, dropout=0.5)) for layers in (2,)]
    [True]
    """
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True  # of `torch.nn.utils.spectral_norm`
    if isinstance(module, _DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, _NormBase):  # batch norms and instance norms
        return bool(module.running_mean is not None)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RReLU):
        return bool(module.lower < module.upper)
    return isinstance(module, parametrizations._SpectralNorm)
