"""Kinds of nodes in a traced graph: activations, norms, and other operations that keep the order of channels."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import activation, batchnorm, dropout, instancenorm, normalization, pooling

_NAMES = """
    relu relu_ relu6 gelu silu silu_ elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ rrelu prelu hardtanh
    hardtanh_ hardsigmoid hardswish hardshrink softshrink tanhshrink softplus softsign logsigmoid mish threshold
    threshold_ sigmoid sigmoid_ tanh tanh_ clamp clamp_ clamp_min clamp_min_ clip clip_
""".split()
_KEEPING = """
    add add_ sub sub_ mul mul_ div div_ true_divide dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout batch_norm instance_norm layer_norm group_norm rms_norm contiguous to float half bfloat16
    double clone max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
""".split()
_NORM_NAMES = ["batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"]
_OTHERS = (activation.MultiheadAttention, activation.GLU)
_MIXING = (activation.Softmax, activation.Softmax2d, activation.LogSoftmax, activation.Softmin)
_NORM_LAYERS = (
    *(batchnorm._BatchNorm, instancenorm._InstanceNorm),
    *(normalization.LayerNorm, normalization.GroupNorm, normalization.RMSNorm),
)
_KEEPING_LAYERS = (
    *(nn.Identity, dropout._DropoutNd, pooling._MaxPoolNd, pooling._AvgPoolNd),
    *(pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
)


def _functions(names: list[str]) -> frozenset[Any]:
    found = {getattr(place, name, None) for place in (F, torch, torch.nn.functional) for name in names}
    return frozenset(found - {None})


ACTIVATIONS = _functions(_NAMES)
KEEPING = _functions(_KEEPING) | frozenset(
    getattr(operator, name) for name in ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv")
)
NORM_FUNCTIONS = _functions(_NORM_NAMES)


def is_activation(root: nn.Module, node: fx.Node) -> bool:
    """True if a node is an activation: a function applied to each element, such as ReLU, GELU, sigmoid, clamp."""
    if node.op == "call_module":
        return is_activation_module(root.get_submodule(str(node.target)))
    return node.target in (ACTIVATIONS if node.op == "call_function" else _NAMES if node.op == "call_method" else ())


def is_activation_module(module: nn.Module) -> bool:
    """True if a module is one of torch's activations that work on each element alone."""
    own = type(module).__module__ == activation.__name__
    return own and not isinstance(module, (*_OTHERS, *_MIXING))


def is_norm(root: nn.Module, node: fx.Node) -> bool:
    """True if a node is a norm layer or the function of one."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _NORM_LAYERS)
    return node.op == "call_function" and node.target in NORM_FUNCTIONS


def is_threshold(root: nn.Module, node: fx.Node) -> bool:
    """True if a node is a module that sets small activations to zero, which its attribute `is_threshold` says."""
    return node.op == "call_module" and getattr(root.get_submodule(str(node.target)), "is_threshold", False) is True


def keeps_channels(root: nn.Module, node: fx.Node) -> bool:
    """True if a node keeps the order of channels: norms, sums, products, dropout, pooling over space."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), (*_NORM_LAYERS, *_KEEPING_LAYERS))
    return node.target in (KEEPING if node.op == "call_function" else _KEEPING if node.op == "call_method" else ())
