"""Integers in the graph that are sizes or positions get their new values.

The functions for the arguments of an operation are registered with `resizes` and `repositions`, in the files of
`fxprune/ops`. Here are products of sizes, and numbers that are computed from sizes but are no sizes.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from fxprune.ops import Operand
from fxprune.ops.aspects import POSITIONS, SIZES
from fxprune.ops.aspects import resizes as _resizes
from fxprune.ops.site import Site
from fxprune.ops.views import as_strided_sizes, view_sizes


def resize(site: Site) -> None:
    """Give the arguments of a node that are sizes or positions their new values."""
    target = site.node.target
    functions = dict.fromkeys(f for f in (SIZES.at(target), POSITIONS.at(target)) if f is not None)
    for function in functions:
        function(site)
    if target in (operator.mul, operator.imul):
        _factor(site)
    elif not functions:
        _keep_numbers(site)


def resizes(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorator `fxprune.ops.resizes` by its old name, which is there for one more release."""
    warnings.warn("fxprune.rewrite.sizes.resizes is fxprune.ops.resizes now", DeprecationWarning, stacklevel=2)
    operations = [
        target for target in targets if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    ]
    return _resizes(*operations, targets=[target for target in targets if target not in operations])


def _keep_numbers(site: Site) -> None:
    """Write the old value of a number that is computed from a size but is no size, such as 1 / sqrt(channels)."""
    arguments = (*site.node.args, *site.node.kwargs.values())
    if not any(isinstance(a, fx.Node) and isinstance(site.operand(a), Operand) for a in arguments):
        return

    def old_number(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            before, now = site.operand(argument), site.value(argument)
            if type(before) in (int, float) and before != now:
                return before
        return argument

    site.node.args = tuple(old_number(a) for a in site.node.args)
    site.node.kwargs = {name: old_number(a) for name, a in site.node.kwargs.items()}


def _factor(site: Site) -> None:
    """Set the number in a product of sizes, such as 8 in batch * 8, so that the product is the new size."""
    numbers = [i for i, a in enumerate(site.node.args) if type(a) is int]
    if type(site.output) is not int or len(numbers) != 1:
        _keep_numbers(site)
        return
    (position,) = numbers
    number, other = site.node.args[position], site.node.args[1 - position]
    ratio = _ratio(site, site.node)
    before, now = site.operand(other), site.value(other)
    if ratio is not None and now and isinstance(number, int):
        new = number * ratio * Fraction(before, now)
        if new.denominator == 1:
            site.node.update_arg(position, int(new))


def _ratio(site: Site, product: fx.Node) -> Fraction | None:
    """The new size over the old one, where a product is used as a size; None if its uses need different ratios."""
    ratios: set[Fraction | None] = set()
    for user in product.users:
        promised = site.operand(user)
        if user.target in (operator.mul, operator.imul):
            ratios.add(_ratio(site, user))
        elif SIZES.at(user.target) is as_strided_sizes and isinstance(promised, Operand):
            ratios |= _ratios_of_strides(site, user, promised, product)
        elif SIZES.at(user.target) is view_sizes and isinstance(promised, Operand):
            sizes = user.args[1] if len(user.args) == 2 and isinstance(user.args[1], (list, tuple)) else user.args[1:]
            if len(sizes) != promised.ndim or product not in sizes:
                return None
            for size, count, before in zip(sizes, site.removal.shape(promised.vectors), promised.shape, strict=True):
                if size is product and before:
                    ratios.add(Fraction(count, before))
        else:
            ratios.add(Fraction(1))
    return ratios.pop() if len(ratios) == 1 else None


def _ratios_of_strides(site: Site, user: fx.Node, promised: Operand, product: fx.Node) -> set[Fraction | None]:
    """The new strides over the old ones, where a product is a stride: it counts the slots of the dimensions after."""
    strides = user.args[2] if len(user.args) > 2 else user.kwargs.get("stride")
    if not isinstance(strides, (list, tuple)):
        return {None}
    counts, sizes = site.removal.shape(promised.vectors), promised.shape
    places = [place for place, stride in enumerate(strides) if stride is product]
    return {Fraction(math.prod(counts[d + 1 :]), max(math.prod(sizes[d + 1 :]), 1)) for d in places}
