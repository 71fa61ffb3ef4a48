"""Conversions of dense layers to sparse ones and back. Weights at or below a threshold are not stored."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from fxprune.arguments import checks_arguments, checks_names, fits
from fxprune.errors import NothingRemovedWarning, PlanError, counted, lay_out, level_of_user, nearest
from fxprune.names import Level, Match, find_all, names_of, show
from fxprune.sparse.storage.layouts import SparseConv2d, SparseLayer, SparseLinear
from fxprune.sparse.storage.matrices import COMPONENTS, Spec
from fxprune.sparse.storage.products import refusal
from fxprune.sparse.storage.semi_structured import SemiStructuredLinear, check_product, check_semi_structured

SPARSE = (SparseLayer, SemiStructuredLinear)
LAYOUTS = (*COMPONENTS, "semi_structured")
"""The values that `layout` can have."""

_DENSE = (nn.Linear, nn.Conv2d)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_READERS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules of torch that use the weights of their layers without calling the layers."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Sparse = SparseLinear | SparseConv2d | SemiStructuredLinear


@overload
def sparsify(
    layer: nn.Conv2d, threshold: float = 0.0, *, layout: str = "csr", blocksize: tuple[int, int] | None = None
) -> SparseConv2d: ...
@overload
def sparsify(
    layer: nn.Module, threshold: float = 0.0, *, layout: str = "csr", blocksize: tuple[int, int] | None = None
) -> Any: ...
@checks_names
def sparsify(
    layer: nn.Module, threshold: float = 0.0, *, layout: str = "csr", blocksize: tuple[int, int] | None = None
) -> Any:
    """Returns a sparse layer that stores those weights of a linear layer or convolution for which |w| > threshold.

    It computes what the dense layer computes with all other weights at zero, up to the order of summation. The result
    shares no memory with the layer, and has its device and type.

    Args:
        layer: an `nn.Linear` or `nn.Conv2d`, only read. Parametrizations and masks of `torch.nn.utils.prune` are
            allowed; the weight is the one that forward uses.
        threshold: in [0, inf], compared with |w| in the type of the weight. `math.inf` gives a layer without stored
            values, into which a state_dict can be loaded.
        layout: "csr" (compressed rows); "coo" (coordinates); "bsr" (a block is stored if one of its weights is above
            the threshold); or "semi_structured" (at most two of every four weights; linear layers on CUDA only).
        blocksize: for "bsr", (height, width) of a block; it must divide the matrix, which is
            [out_features, in_features] or [out_channels, in_channels / groups * kh * kw].

    Raises `PlanError` for a layer, threshold, layout, shape, type or device that is not supported. Warns with
    `NothingRemovedWarning` if every weight stays, because the sparse layer then takes more memory than the dense one.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> sparsify(torch.nn.Linear(64, 32), 0.1)
    SparseLinear(64, 32, bias=True, layout=csr, stored=425, density=0.208)
    """
    return _sparse(layer, threshold, layout, blocksize, type(layer).__name__)


@checks_names
def sparsify_model(
    model: nn.Module,
    threshold: float = 0.0,
    *,
    where: Any = None,
    ignore: Any = (),
    layout: str = "csr",
    blocksize: tuple[int, int] | None = None,
) -> nn.Module:
    """Returns a deep copy of a model in which chosen layers are sparse; see `sparsify`.

    Args:
        model: only read.
        threshold, layout, blocksize: as for `sparsify`.
        where: the layers to convert: a pattern or several, see `fxprune.names`; a type means modules of exactly that
            type. None means every `nn.Linear` and `nn.Conv2d`.
        ignore: a pattern or several, for layers that stay dense. A layer that cannot be sparse is an error and is
            never skipped silently, so name it here.

    Raises `PlanError`, with the names of the layers, for the reasons of `sparsify`. It also raises it for a layer whose
    weight is tied to another parameter, and for a layer inside a module of torch that uses the weights of its layers
    directly (`nn.TransformerEncoderLayer`).

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 10))
    >>> small = sparsify_model(net, 0.05, where="2")
    >>> [type(layer).__name__ for layer in small]
    ['Conv2d', 'Flatten', 'SparseLinear']
    """
    if isinstance(model, (nn.Linear, nn.Conv2d)):
        raise PlanError(
            "the model is a single layer",
            at=type(model).__name__,
            why="it is replaced by another layer, which a model would hold",
            do="call `sparsify(layer, ...)`",
        )
    chosen = _chosen(model, where, ignore)
    if not chosen:
        raise PlanError(
            "every layer that `where` names is ignored",
            at=f"sparsify({type(model).__name__}, ignore=...)",
            why="what is ignored stays dense",
            do="name a layer that is to be sparse",
        )
    refused: list[PlanError] = []
    made: dict[int, nn.Module] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, layer in chosen.items():
            at = f'layer "{name}"'
            try:
                _check_replaceable(model, name, layer, at)
                made[id(layer)] = made.get(id(layer)) or _sparse(layer, threshold, layout, blocksize, at)
            except PlanError as error:
                refused.append(error)
    if refused:
        raise _one_error(refused)
    for warning in caught:
        warnings.warn(warning.message, stacklevel=level_of_user())
    return copy.deepcopy(model, dict(made))


@checks_arguments("model")
def densify(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model in which dense layers of torch with the same weights replace the sparse ones.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    >>> densify(sparsify_model(net, 0.1))
    Sequential(
      (0): Linear(in_features=8, out_features=4, bias=True)
      (1): ReLU()
    )
    """
    if isinstance(model, SPARSE):
        return model.to_dense()
    return copy.deepcopy(model, {id(m): m.to_dense() for m in model.modules() if isinstance(m, SPARSE)})


def _sparse(layer: Any, threshold: Any, layout: Any, blocksize: Any, at: str) -> Sparse:
    """Returns the sparse layer; checks everything before it makes anything."""
    _check_options(threshold, layout, blocksize)
    weight, bias = _tensors_in_use(layer, at)
    if layout == "semi_structured" and isinstance(layer, nn.Conv2d):
        why = "torch's kernel of two in four is that of a linear layer"
        raise PlanError("layout semi_structured does not take a convolution", at=at, why=why, do='take layout "csr"')
    kept = weight.abs() > threshold
    weight = torch.where(kept, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    if layout == "semi_structured":
        check_semi_structured(weight, at)
        semi = SemiStructuredLinear(weight, bias)
        check_product(semi, weight, at)
        return semi.train(layer.training)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    _check_blocks(tuple(weight.flatten(1).shape), groups, blocksize, at)
    why = refusal(Spec(layout, (1, 1), blocksize), weight.dtype, weight.device)
    if why:
        what = f"this build of torch has no product of layout {layout} for {weight.dtype} on {weight.device.type}"
        raise PlanError(what, at=at, why=why, do="take another layout, type or device")
    _warn_if_all_or_none(kept, threshold, at)
    sparse: SparseLinear | SparseConv2d
    if isinstance(layer, nn.Conv2d):
        sparse = SparseConv2d(layer, weight, bias, layout=layout, blocksize=blocksize)
    else:
        sparse = SparseLinear(weight, bias, layout=layout, blocksize=blocksize)
    trained = {name.rpartition(".")[2].removesuffix("_orig"): p.requires_grad for name, p in layer.named_parameters()}
    sparse.values.requires_grad_(trained.get("weight", any(trained.values())))
    if sparse.bias is not None:
        sparse.bias.requires_grad_(trained.get("bias", any(trained.values())))
    return sparse.train(layer.training)


def _check_options(threshold: Any, layout: Any, blocksize: Any) -> None:
    if not fits(threshold, float) or not threshold >= 0:
        what = f"threshold must be a number of at least 0, not {threshold!r}"
        raise PlanError(
            what,
            at="sparsify",
            why="magnitudes are compared with it",
            do="weights with |w| > threshold stay: pass 0 to drop only what is zero",
        )
    if layout not in LAYOUTS:
        why = nearest(str(layout), LAYOUTS)
        if layout in ("csc", "bsc"):
            why = "torch makes a csc anew as csr with every product on CPU, and has no product of a bsc there"
        raise PlanError(
            f"there is no layout {layout!r}", at=f"layout={layout!r}", why=why, do=f"take one of {', '.join(LAYOUTS)}"
        )
    if layout != "bsr" and blocksize is not None:
        raise PlanError(
            f"layout {layout} has no blocksize",
            at=f"blocksize={blocksize!r}",
            why="only bsr stores blocks",
            do='leave blocksize out, or take layout "bsr"',
        )
    whole = isinstance(blocksize, tuple) and [type(b) for b in blocksize] == [int, int] and min(blocksize) > 0
    if layout == "bsr" and not whole:
        what = f'layout "bsr" needs a blocksize of two positive integers, not {blocksize!r}'
        raise PlanError(
            what,
            at=f"blocksize={blocksize!r}",
            why="it stores blocks of this size",
            do="pass (height, width), for example blocksize=(8, 8)",
        )


def _tensors_in_use(layer: Any, at: str) -> tuple[Tensor, Tensor | None]:
    """Returns copies of the weight and bias that forward uses: with parametrizations and masks of `prune` applied."""
    kind = type(layer).__mro__[1] if parametrize.is_parametrized(layer) else type(layer)
    if kind not in (nn.Linear, nn.Conv2d):
        if isinstance(layer, SPARSE):
            raise PlanError(
                "the layer is sparse already", at=at, why="it is stored sparse", do="go back with `to_dense()` first"
            )
        subclass = isinstance(layer, (nn.Linear, nn.Conv2d))
        why = f"it is a {kind.__name__}, " + (
            "whose forward or owner may use the weight in its own way" if subclass else "and has no weight to take"
        )
        raise PlanError(
            "only nn.Linear and nn.Conv2d can be sparse", at=at, why=why, do="leave it out, or name its layers"
        )
    hooks = [hook for name in _HOOKS for hook in getattr(layer, name).values()]
    if foreign := [hook for hook in hooks if not isinstance(hook, BasePruningMethod)]:
        why = f"{getattr(foreign[0], '__qualname__', type(foreign[0]).__name__)} would not run on the sparse layer"
        raise PlanError("the layer has hooks", at=at, why=why, do="remove the hooks, and put them on the sparse layer")
    found: list[Tensor | None] = []
    with torch.no_grad():
        for name in ("weight", "bias"):
            mask = getattr(layer, f"{name}_mask", None) if hooks else None
            tensor = getattr(layer, name) if mask is None else getattr(layer, f"{name}_orig") * mask
            found.append(None if tensor is None else tensor.detach().clone())
    weight, bias = found
    assert weight is not None
    _check_weight(weight, at)
    return weight, bias


def _check_weight(weight: Tensor, at: str) -> None:
    if weight.dtype not in DTYPES or weight.is_meta or weight.layout is not torch.strided:
        where = "on the meta device" if weight.is_meta else f"{weight.dtype}, {weight.layout}"
        why = f"it is {where}; it must be dense, real, floating and hold numbers"
        raise PlanError(
            "a weight of this kind cannot be sparse",
            at=at,
            why=why,
            do="convert it to a floating type with values first",
        )
    if not weight.numel():
        raise PlanError(
            "the weight is empty", at=at, why=f"its shape is {tuple(weight.shape)}", do="leave the layer out"
        )
    if bool(weight.isnan().any()):
        raise PlanError(
            "the weight holds NaN", at=at, why="NaN is neither above nor below a threshold", do="mend the weight first"
        )


def _check_blocks(shape: tuple[int, ...], groups: int, blocksize: Any, at: str) -> None:
    if blocksize is None:
        return
    rows, columns = shape[0] // groups, shape[1]
    if rows % blocksize[0] or columns % blocksize[1]:
        inside = " of a group" if groups > 1 else ""
        raise PlanError(
            f"blocks of {blocksize} do not divide the weight",
            at=at,
            why=f"the matrix{inside} is {[rows, columns]}",
            do="take a blocksize that divides both, or another layout",
        )


def _warn_if_all_or_none(kept: Tensor, threshold: float, at: str) -> None:
    """Warns if the threshold keeps every weight, or none."""
    if bool(kept.all()):
        text = lay_out(
            "every weight stays: the sparse layer takes more memory than the dense one",
            at=at,
            why=f"no |w| is at or below the threshold {threshold}",
            do="prune the weights first, or raise the threshold",
        )
        warnings.warn(NothingRemovedWarning(text), stacklevel=level_of_user())
    elif not math.isinf(threshold) and not bool(kept.any()):
        why = f"all |w| are at most {threshold}"
        text = lay_out("no weight stays: the layer returns its bias", at=at, why=why, do="lower the threshold")
        warnings.warn(text, UserWarning, stacklevel=level_of_user())


def _chosen(model: nn.Module, where: Any, ignore: Any) -> dict[str, nn.Module]:
    """Returns the layers that `where` names and `ignore` does not, in the order of the model."""
    names = names_of(model, parameters=False)
    found: set[int] = set()
    for match in find_all(names, where, what="where") if where is not None else ():
        layers = {id(layer) for module in match.modules.values() for layer in _layers_of(module, match)}
        if not layers:
            raise PlanError(
                f"where names nothing: {show(match.pattern)}",
                at=f"where={show(match.pattern)}",
                why="no module of the model is of exactly that type",
                do="name a type of which the model has layers, or names of layers",
            )
        found |= layers
    if where is None:
        found = {id(module) for module in model.modules() if _kind(module) in _DENSE}
        if not found:
            kinds = " or ".join(kind.__name__ for kind in _DENSE)
            raise PlanError(
                "where names nothing",
                at=f"sparsify({type(model).__name__})",
                why=f"the model has no module of the types {kinds}",
                do="name layers, or pass one of them",
            )
    ignored = find_all(names, ignore, what="ignore", empty=True)
    return {
        name: module
        for name, module in names.modules.items()
        if name
        and id(module) in found
        and not any(match.below(other) for match in ignored for other in names.spellings(name))
    }


def _layers_of(module: nn.Module, match: Match) -> list[nn.Module]:
    """The layers that a named module stands for: itself, or those in a block. A type means exactly that type."""
    if not isinstance(module, _DENSE) and (inside := [m for m in module.modules() if _kind(m) in _DENSE]):
        return inside
    return [module] if match.level is not Level.TYPE or _kind(module) is match.pattern else []


def _kind(module: nn.Module) -> type:
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def _check_replaceable(model: nn.Module, name: str, layer: nn.Module, at: str) -> None:
    """Raises `PlanError` for a layer whose weight is tied, or is read by a module around it."""
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), _READERS):
            kind = type(model.get_submodule(parent)).__name__
            why = f"it is inside {kind}, which reads the weights of its layers itself"
            raise PlanError("the layer cannot be replaced", at=at, why=why, do="leave it out with `ignore`")
    own = {id(p) for p in layer.parameters()}
    for module_name, module in model.named_modules():
        if module is layer or any(module is m for m in layer.modules()):
            continue
        for key, p in module._parameters.items():
            if id(p) in own:
                tied = f"{module_name}.{key}" if module_name else key
                why = f'its parameter is also "{tied}", and would be no longer'
                raise PlanError("the layer is tied", at=at, why=why, do="leave it out with `ignore`, or untie it first")


def _one_error(refused: list[PlanError]) -> PlanError:
    """Returns one error for all layers refused for the first one's reason, with the number of the other layers."""
    first = refused[0]
    if len(refused) == 1:
        return first
    same = [error.at for error in refused if (error.what, error.why) == (first.what, first.why)]
    listed = ", ".join(same[:8]) + (", ..." if len(same) > 8 else "")
    others = len(refused) - len(same)
    more = f"; {counted(others, 'more layer')} cannot be sparse for other reasons" if others else ""
    return PlanError(first.what, at=listed, why=first.why + more, do=first.do)
