"""The values that are zero everywhere once some modules give zeros."""

from __future__ import annotations

from typing import Any

from fxprune.depth.flow import Flow, ModuleCall, Operation

_PRODUCTS = {"mul"}
_SUMS = {"add", "sub"}
_JOINS = {"cat", "stack"}
_KEEP = set(
    """
    _reshape_alias _to_copy _unsafe_view alias as_strided avg_pool1d avg_pool2d clone constant_pad_nd detach div expand
    flatten flip gelu index index_select leaky_relu mean movedim native_dropout narrow neg permute relu reshape roll
    select silu slice split split_with_sizes squeeze sum t tanh transpose unbind unfold unsqueeze upsample_bilinear2d
    upsample_nearest2d view _adaptive_avg_pool2d max_pool2d_with_indices
    """.split()
)
"""The operations whose result is zero where their first argument is."""


class Zeros:
    """The values of a flow that are zero if some calls of modules give zeros."""

    def __init__(self, flow: Flow, calls: set[int]) -> None:
        self.flow, self.calls = flow, calls
        self._known: dict[int, str] = {}

    def why_not(self, value: int) -> str:
        """Why a value is not zero; "" if it is."""
        if value not in self._known:
            self._known[value] = self._reason(value)
        return self._known[value]

    def _reason(self, value: int) -> str:
        maker = self.flow.maker.get(value)
        if maker is None:
            return "it ends in a parameter or an input"
        operation = self.flow.operations[maker]
        inside = [number for number in operation.calls if number in self.calls]
        if inside:
            return "" if value in results(self.flow.calls[inside[0]]) else "it leaves its module by a side way"
        name = operation.name.removeprefix("aten::").rstrip("_")
        reasons = [self.why_not(max(values)) for values in operation.operands if values]
        if name in _PRODUCTS and reasons:
            return reasons[0] if all(reasons) else ""
        if name in _SUMS and len(reasons) == 2:
            return next(filter(None, reasons), "")
        if name in _JOINS:
            return next(filter(None, map(self.why_not, operation.reads)), "")
        if name in _KEEP and operation.operands and operation.operands[0]:
            return reasons[0]
        return f"{operation.name} in {self._module(operation)} does not keep zeros, and is in no module that can go"

    def _module(self, operation: Operation) -> str:
        return self.flow.calls[operation.calls[-1]].path or "the model" if operation.calls else "the model"


def results(call: ModuleCall) -> set[int]:
    """The values in the result of a call."""
    return set(values_in(call.form))


def values_in(form: Any) -> list[int]:
    """The values in the form of a result, in order."""
    if isinstance(form, list):
        return [value for part in form for value in values_in(part)]
    return [] if form is None else [form]
