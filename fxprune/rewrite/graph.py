"""The rewrite: a copy of the captured model becomes the smaller one, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.capture.fake_tensors import Faker
from fxprune.channels.groups import Removal
from fxprune.rewrite.attributes import settle_settings
from fxprune.rewrite.constants import place_constants
from fxprune.rewrite.draft import draft_of
from fxprune.rewrite.hooks import reinsert
from fxprune.rewrite.module_sizes import recount_modules
from fxprune.rewrite.node_sizes import settle_nodes
from fxprune.rewrite.norms import preserve_modules, preserve_nodes, rescaled
from fxprune.rewrite.recurrent import refresh
from fxprune.rewrite.tensor_hooks import carry_over
from fxprune.rewrite.tensors import cut_all


def rewrite(findings: Findings, removal: Removal, constants: FoldedConstants | None = None) -> nn.Module:
    """The smaller model, which shares no tensor with the original.

    It has the class of the original if the capture kept it, else it is a `GraphModule`. First all sizes are settled on
    fake tensors of the new shapes. Only then the real tensors are cut.

    Args:
        removal: the channels to remove.
        constants: the new numbers of parameters that take up constants, and new biases and maps.

    Raises `RewriteError` where a size cannot be recounted, or a node's result has another shape than the analysis says.
    The original never changes.
    """
    faker, constants = Faker(), constants or FoldedConstants()
    shapes = shapes_after(findings, removal)
    fakes = {name: faker.smaller(tensor, shapes[name]) for name, tensor in findings.tensors.items()}
    draft = draft_of(findings.captured, {id(findings.tensors[name]): fake for name, fake in fakes.items()})
    small = draft.module
    recount_modules(draft, findings, removal)
    settle_settings(small, findings, removal)
    if not findings.captured.real:
        settle_nodes(draft, findings, removal, faker)
    preserve_modules(small, findings, removal)
    preserve_nodes(small, draft.graph, draft.before, findings, removal)
    real = cut_all(findings, removal)
    for name, numbers in {**rescaled(findings, removal), **constants.values}.items():
        if name in real:
            real[name].detach().copy_(numbers)
    _fill(small, {id(fake): real[name] for name, fake in fakes.items()})
    place_constants(draft, constants)
    carry_over(findings.tensors, findings.model, real, small)
    if findings.captured.needs_hooks:
        reinsert(small, findings, removal)
    if isinstance(small, fx.GraphModule):
        small.graph.lint()
        small.recompile()
    return small


def _fill(small: nn.Module, tensors: Mapping[int, torch.Tensor]) -> None:
    """Put the real tensors where the fake ones stood."""
    for module in small.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for place in places:
            for name, value in place.items():
                if isinstance(value, torch.Tensor) and id(value) in tensors:
                    place[name] = tensors[id(value)]
        refresh(module)
