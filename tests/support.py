"""Helpers of several tests: torchvision on any build of torch, and models whose random numbers hide no error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_DETECTION_OPS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []  # a library that is collected takes its operators along

_MATRICES = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def torchvision() -> ModuleType:
    """The package `torchvision`, also where its compiled operators do not fit the torch that is installed.

    It registers fake kernels for its detection operators on import, which fails where these were not loaded. Their
    schemas are declared then, and only then, so that a build that does have them is left alone.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _DETECTION_OPS:
            library.define(schema)
        _LIBRARIES.append(library)
        import torchvision
    import torchvision.models

    return torchvision


def randomise(model: nn.Module, seed: int, *, weights: bool = False) -> nn.Module:
    """Give statistics, biases, affines and layer scales random values, in place; returns the model.

    Fresh models hide errors: a mean of 0, a variance of 1 and a bias of 0 are right for any channel. Afterwards
    variances are in [0.5, 1.5], affines and scales in [0.5, 1.5] with either sign, means and biases normal with
    deviation 0.3. Other parameters, the kernels and matrices, keep their values unless `weights` asks for new ones:
    uniform, of variance 2 / fan_in, which keeps the deviation of what they are applied to (He et al. 2015).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.uniform_(0.5, 1.5, generator=generator)

    def signed(tensor: torch.Tensor) -> torch.Tensor:
        positive = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) < 0.5
        return uniform(tensor).mul_(torch.where(positive, 1.0, -1.0))

    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None or not tensor.is_floating_point():
                    continue
                if name == "running_var":
                    uniform(tensor)
                elif name == "running_mean" or name.endswith("bias"):
                    tensor.normal_(0.0, 0.3, generator=generator)
                elif isinstance(module, _NORMS) or (not isinstance(module, _MATRICES) and _is_scale(tensor)):
                    signed(tensor)
                elif weights and name in module._parameters and tensor.ndim > 1:
                    bound = math.sqrt(6.0 / tensor[0].numel())
                    tensor.uniform_(-bound, bound, generator=generator)
    return model


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """The model, or a method, on a tensor, a tuple of positional arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def calibrate(model: nn.Module, inputs: Any, seed: int) -> nn.Module:
    """Set the statistics of batch norms to those of a batch, each off by a random amount, in place; returns the model.

    Deep networks of random weights are chaotic: the residual stream grows with every block, gates saturate, and
    rounding errors grow to 1e-4 within a hundred layers. Where a batch norm divides by about the deviation it meets,
    as in a trained network, they stay rounding errors, so that a test can ask for 1e-9.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.training, m.momentum) for m in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    with torch.no_grad():
        call(model, inputs)
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            factor = torch.rand(mean.shape, generator=generator, dtype=mean.dtype) + 0.5
            variance.add_(0.1).mul_(factor)
            mean.add_(0.3 * noise * variance.sqrt())
    return model


def _is_scale(tensor: torch.Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) == 1


def relative_error(ours: Any, reference: Any) -> float:
    """max |ours - reference| / max |reference|, the largest over the tensors of two results of equal structure.

    Infinite where shapes or the number of tensors differ, or where a value is not finite.
    """
    a = [t for t in pytree.tree_leaves(ours) if isinstance(t, torch.Tensor)]
    b = [t for t in pytree.tree_leaves(reference) if isinstance(t, torch.Tensor)]
    if not b or [t.shape for t in a] != [t.shape for t in b]:
        return math.inf
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        error = float((x.detach() - y.detach()).abs().max() / y.detach().abs().max().clamp_min(1e-300))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


@contextlib.contextmanager
def uninitialised(*, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Iterator[None]:
    """Models made in here get parameters of this dtype on this device, with whatever the memory held.

    With `device="meta"` they take no memory. Tensors with values, such as the tables from which a model computes
    its widths, stay what they are: only `torch.empty` changes.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Uninitialised(device):
            yield
    finally:
        torch.set_default_dtype(before)


class _Uninitialised(TorchFunctionMode):
    SKIPPED = ("normal_", "uniform_", "erfinv_", "clamp_")

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": self.device})
        if getattr(func, "__name__", "") in self.SKIPPED and args and isinstance(args[0], torch.Tensor):
            return args[0]
        return func(*args, **kwargs)
