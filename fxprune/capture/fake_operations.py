"""The results of ATen operations on fake tensors, for many operations on a shorter way than torch's.

Torch computes a long key of each call, and else tries one way to a result after the other. Views end in the kernel of
the meta device, which is called here at once (`BY_KERNEL`). For operations that make new tensors a short key is enough
(`REMEMBERED`). For batch normalisation in evaluation mode torch decomposes the operation, although the result has the
shape of the input. The question for a device goes through all of torch's modes. For `_grouped_mm` torch accepts
bfloat16 only. For a product of matrices of two dtypes, which raises on every device, torch gives a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._mode_utils import no_dispatch

from fxprune.capture.example_numbers import check_lookup, follow

aten = torch.ops.aten


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an ATen operation on fake tensors."""
    way = _WAYS.get(func)
    made = None if way is None else way(func, args, kwargs)
    return func(*args, **kwargs) if made is None else made


def _common(args: tuple[Any, ...]) -> tuple[FakeTensorMode, torch.device] | None:
    """The mode and the device of all tensors among the arguments.

    None if torch has to look at them: where there are none, tensors of several devices, real ones, sparse ones,
    tensors whose numbers are known, or sizes that are symbols.
    """
    found: tuple[FakeTensorMode, torch.device] | None = None
    for arg in args:
        for value in arg if type(arg) is list else (arg,):
            if not isinstance(value, torch.Tensor):
                continue
            if type(value) is not FakeTensor or value.constant is not None or value.layout is not torch.strided:
                return None
            this = value.fake_mode, value.fake_device
            if found is not None and (this[0] is not found[0] or this[1] != found[1]):
                return None
            found = this
    return None if found is None or found[0].shape_env is not None else found


def _by_kernel(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of the meta kernel; None where torch has to look."""
    found = _common(args)
    if found is None:
        return None
    with in_kernel_invocation_manager(found[0]):
        made = func(*args, **kwargs)
    wrapped = _wrapped(made, *found)
    follow(func, args, kwargs, wrapped)
    return wrapped


def _wrapped(made: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    """The result of a meta kernel as fake tensors; one that the operation wrote into is fake already."""
    if isinstance(made, torch.Tensor):
        return made if isinstance(made, FakeTensor) else FakeTensor(mode, made, device)
    return type(made)(_wrapped(each, mode, device) for each in made)


@dataclass(frozen=True)
class _Form:
    """Everything of a tensor that the form of a result depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self, mode: FakeTensorMode, device: torch.device) -> FakeTensor:
        """A new fake tensor of this form."""
        with no_dispatch():
            meta = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return FakeTensor(mode, meta, device)


def _form_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Form(tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(_form_of, value)) if isinstance(value, list) else (type(value), value)


_FORMS: dict[Any, tuple[bool, list[_Form]]] = {}
"""Operation and forms of its arguments -> True if the result is one tensor, and the forms of its results."""

MOST_FORMS = 4096
"""The most entries of `_FORMS`."""


def _remembered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result, from that of an equal call before if there was one; None where torch has to look."""
    found = _common(args)
    if found is None:
        return None
    named = ((name, _form_of(value)) for name, value in kwargs.items())
    key = func, found[1], torch.get_default_dtype(), *map(_form_of, args), *named  # the type of `integers.sqrt()`
    known = _FORMS.get(key)
    if known is not None:
        made = [form.made(*found) for form in known[1]]
        return made[0] if known[0] else tuple(made)
    result = func(*args, **kwargs)
    single = isinstance(result, torch.Tensor)
    results = [result] if single else list(result)
    if all(isinstance(each, FakeTensor) and each.fake_device == found[1] for each in results):
        if len(_FORMS) >= MOST_FORMS:
            _FORMS.clear()
        _FORMS[key] = single, [_form_of(each) for each in results]
    return result


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The tensor that an operation writes into, with a tensor of its form or a number; None for what torch checks.

    A tensor whose numbers are known, such as the count of batches of a norm, knows them afterwards too.
    """
    written, others = args[0], args[1:]
    if (
        type(written) is not FakeTensor
        or written.fake_mode.shape_env is not None
        or written.layout is not torch.strided
    ):
        return None
    numbers = all(type(other) in (int, float) for other in (*others, *kwargs.values()))
    if written.constant is not None:
        if not numbers or func not in _COUNTING or written.numel() > 1:
            return None
        with no_dispatch():
            func(written.constant, *others, **kwargs)
        return written
    if numbers:
        return written if written.is_floating_point() else None
    fits = len(others) == 1 and _common(args) is not None and isinstance(others[0], FakeTensor)
    return written if fits and written.shape == others[0].shape and written.dtype == others[0].dtype else None


def _device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    return args[0].fake_device if isinstance(args[0], FakeTensor) else None


def _empty(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """A new tensor on the CPU, as batch normalisation makes it; None for any other."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    device = kwargs.get("device")
    plain = kwargs.keys() <= {"dtype", "device", "layout", "pin_memory"} and not kwargs.get("pin_memory")
    plain = plain and kwargs.get("layout") in (None, torch.strided)
    if mode is None or mode.shape_env is not None or not plain or device is None or device.type != "cpu":
        return None
    with no_dispatch():
        meta = torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
    return FakeTensor(mode, meta, device)


def _batch_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...] | None:
    """The output, and the two statistics of the batch, which are empty in evaluation mode."""
    x, training = args[0], args[5]
    wide = x.dtype in (torch.float32, torch.float64)  # else the statistics of a batch have another type
    if not isinstance(x, FakeTensor) or not _is_dense(x) or (training and not wide):
        return None
    of_batch = _Form((x.shape[1] if training else 0,), (1,), x.dtype)
    return tuple(form.made(x.fake_mode, x.fake_device) for form in (_form_of(x), of_batch, of_batch))


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    """The result of `torch.nn.functional.batch_norm` by its one operation; None where torch has to look.

    Torch asks for the device twice before it, and makes an empty tensor that nothing reads.
    """
    given = [tensor for tensor in (x, running_mean, running_var, weight, bias) if tensor is not None]
    plain = all(type(tensor) is FakeTensor and tensor.fake_device.type == "cpu" for tensor in given)
    usual = running_mean is not None and not training and type(eps) is float and eps >= 0 and x.ndim > 1
    fits = usual and all(tensor.shape == x.shape[1:2] for tensor in given[1:])  # torch has the text of the error
    if not plain or not fits or not x.numel() or torch._C._functorch.maybe_current_level() is not None:
        return None
    made: torch.Tensor = aten.native_batch_norm.default(
        x, weight, bias, running_mean, running_var, training, momentum, eps
    )[0]
    return made


def batch_norm_in_jvp(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    """The result of `torch.nn.functional.batch_norm` on fake tensors inside of `torch.func.jvp`, by its formula.

    None elsewhere. The formula that torch has for the tangent makes fake tensors on another device, and raises.
    """
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if mode is None or training or running_mean is None or x.ndim < 2 or not _in_jvp():
        return None

    def column(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[(slice(None), *(None,) * (x.ndim - 2))]

    made: torch.Tensor = (x - column(running_mean)) * torch.rsqrt(column(running_var) + eps)
    made = made if weight is None else made * column(weight)
    return made if bias is None else made + column(bias)


def _in_jvp() -> bool:
    """True inside of `torch.func.jvp`, or of what is made of it."""
    return any(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def _is_dense(x: torch.Tensor) -> bool:
    """True if a tensor is contiguous, or is an image with its channels last: results then have its strides."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The product of two matrices, the last arguments; None where torch has to look.

    Raises for matrices of two dtypes, as every device does. The kernel for fake tensors gives a result.
    """
    mat1, mat2 = args[-2:]
    if mat1.dtype != mat2.dtype:
        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {mat1.dtype} and {mat2.dtype}")
    return _remembered(func, args, kwargs)


def _lookup(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rows of a table; None where torch has to look. Raises for numbers of example inputs that are out of range."""
    check_lookup(args[0], args[1])
    return _remembered(func, args, kwargs) if func is aten.embedding.default else None


def _grouped_mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The product of groups of rows with a matrix each, [rows, out]; None for other forms."""
    if not isinstance(args[0], FakeTensor) or args[0].ndim != 2 or args[1].ndim != 3:
        return None
    made: torch.Tensor = args[0].new_empty(args[0].shape[0], args[1].shape[2])
    return made


BY_KERNEL = (
    *(aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int, aten.permute.default),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.select.int, aten.slice.Tensor, aten.expand.default),
    *(aten.detach.default, aten.alias.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int),
)
"""The operations whose results depend on shapes, strides and types only, and whose meta kernels are quick."""

REMEMBERED = (
    *(aten.convolution.default, aten.native_layer_norm.default, aten.native_group_norm.default),
    *(aten._softmax.default, aten._scaled_dot_product_flash_attention_for_cpu.default),
    *(aten.max_pool2d_with_indices.default, aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default),
    *(aten.bmm.default, aten.cat.default, aten.clone.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.rsqrt.default),
    *(aten.relu.default, aten.silu.default, aten.gelu.default, aten.sigmoid.default, aten.tanh.default),
    *(aten.hardswish.default, aten.hardsigmoid.default, aten.sqrt.default, aten.exp.default, aten.cos.default),
    *(aten.sin.default, aten.pow.Tensor_Scalar, aten.mean.dim, aten.sum.dim_IntList, aten.where.self),
)
"""The operations whose results are new tensors of the device that they read, and depend on shapes, strides, types and
plain arguments only."""

IN_PLACE = (
    *(aten.add_.Tensor, aten.mul_.Tensor, aten.sub_.Tensor, aten.div_.Tensor, aten.bernoulli_.float),
    *(aten.relu_.default, aten.silu_.default, aten.hardswish_.default, aten.hardtanh_.default),
)
"""The operations that write into their first argument and give it back."""

PRODUCTS = (aten.mm.default, aten.addmm.default)
"""The products of two matrices, whose dtypes torch does not check on fake tensors."""

LOOKUPS = (aten.embedding.default, aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
"""The operations that take rows of a table, their first argument, by numbers, their second one."""

_COUNTING = (aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor)

_WAYS: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(BY_KERNEL, _by_kernel),
    **dict.fromkeys(REMEMBERED, _remembered),
    **dict.fromkeys(IN_PLACE, _in_place),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(LOOKUPS, _lookup),
    torch.ops.prim.device.default: _device,
    aten.empty.memory_format: _empty,
    aten.native_batch_norm.default: _batch_norm,
    aten._grouped_mm.default: _grouped_mm,
}
"""Operation -> a function of the operation and its arguments that makes the result, or None where torch has to."""
