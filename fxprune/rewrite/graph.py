"""The rewrite: a copy of the captured model becomes the smaller one, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.fake_tensors import Faker
from fxprune.capture.references import names_in
from fxprune.channels.groups import Removal
from fxprune.on_demand import overwrite
from fxprune.rewrite.attribute_masks import cut_attributes
from fxprune.rewrite.attributes import settle_settings
from fxprune.rewrite.by_config import follow_config
from fxprune.rewrite.constants import place_constants
from fxprune.rewrite.draft import Draft, draft_of
from fxprune.rewrite.factors import multiplied, with_factors
from fxprune.rewrite.filling import fill
from fxprune.rewrite.hooks import reinsert
from fxprune.rewrite.kept_weights import own_numbers
from fxprune.rewrite.module_sizes import recount_modules
from fxprune.rewrite.node_sizes import run_once, settle_nodes
from fxprune.rewrite.norms import preserve_modules, preserve_nodes
from fxprune.rewrite.seeds_behind_hooks import check_seeds
from fxprune.rewrite.tensor_hooks import carry_over
from fxprune.rewrite.tensors import cut_all, kept_part_of
from fxprune.rewrite.unread_attributes import recount_unread
from fxprune.rewrite.unread_buffers import buffers_that_stay


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A smaller model.

    factors: the factors that its weights carry. exact: name of a parameter whose numbers are other ones than those that
        were cut -> its numbers before they were rounded to its type.
    reasons: sentences about attributes that forward does not read, for the record.
    """

    small: nn.Module
    factors: ScaleFactors
    exact: Mapping[str, torch.Tensor]
    reasons: tuple[str, ...] = ()


def rewrite(findings: Findings, removal: Removal, constants: FoldedConstants | None = None) -> Rewritten:
    """The smaller model, which shares no tensor with the original.

    It has the class of the original if the capture kept it, else it is a `GraphModule`. First all sizes are settled on
    fake tensors of the new shapes. Only then the real tensors are cut.

    Args:
        removal: the channels to remove.
        constants: the new numbers of parameters that take up constants, and new biases and maps.

    Raises `RewriteError` where a size cannot be recounted, or a node's result has another shape than the analysis says.
    The original never changes.
    """
    constants = constants or FoldedConstants()
    settled = _settled(findings, removal)
    draft, fakes, factors = settled.draft, settled.fakes, settled.factors
    small = draft.module
    preserve_modules(small, findings, removal)
    preserve_nodes(small, draft.graph, draft.before, findings, removal)
    real, own = cut_all(findings, removal), own_numbers(findings, removal)
    for name, numbers in {**own, **constants.values}.items():
        if name in real:
            overwrite(real[name], numbers)
    fill(small, fakes, real)
    if findings.captured.real and not findings.captured.needs_hooks:
        factors = run_once(draft, findings, removal)
    constants = with_factors(findings, removal, factors, constants)
    exact = multiplied(findings, removal, factors, {**own, **constants.exact})
    for name in factors.parameters:
        overwrite(real[name], exact[name])
    place_constants(draft, constants)
    known = names_in(findings.model, findings.subject.tensors)
    carry_over(findings.tensors, findings.model, known, real, small, kept_part_of(findings, removal))
    if findings.captured.needs_hooks:
        reinsert(small, findings, removal)
        check_seeds(findings, small, removal)
    if isinstance(small, fx.GraphModule):
        small.graph.lint()
        small.recompile()
    unread = cut_attributes(small, findings, removal) + buffers_that_stay(small, findings, removal)
    return Rewritten(small, factors, exact, settled.reasons + unread)


def scale_factors(findings: Findings, removal: Removal) -> ScaleFactors:
    """The factors that the weights of the smaller model carry. Raises `RewriteError` as `rewrite`.

    The model is only made where its forward decides by numbers.
    """
    return (rewrite if findings.captured.real else _settled)(findings, removal).factors


@dataclass(frozen=True, eq=False)
class _Settled:
    """The smaller model around fake tensors, all sizes settled; these tensors by name. The rest as in `Rewritten`."""

    draft: Draft
    fakes: Mapping[str, torch.Tensor]
    factors: ScaleFactors
    reasons: tuple[str, ...]


def _settled(findings: Findings, removal: Removal) -> _Settled:
    """Settle all sizes on fake tensors of the new shapes."""
    faker, shapes = Faker(), shapes_after(findings, removal)
    fakes = {name: faker.smaller(tensor, shapes[name]) for name, tensor in findings.tensors.items()}
    draft = draft_of(findings.captured, {id(findings.tensors[name]): fake for name, fake in fakes.items()})
    recount_modules(draft, findings, removal)
    settle_settings(draft.module, findings, removal)
    reasons = draft.said + recount_unread(draft.module, findings, removal)
    follow_config(draft, findings, removal)
    if findings.captured.real:
        return _Settled(draft, fakes, ScaleFactors(), reasons)
    factors, in_result = settle_nodes(draft, findings, removal, faker)
    return _Settled(draft, fakes, factors, reasons + in_result)
