"""The plan: the indices that are removed from every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxprune.analysis.findings import Findings
from fxprune.arguments import checks_arguments
from fxprune.errors import counted
from fxprune.files import PathLike
from fxprune.notebooks import html_table
from fxprune.planning.combine import kept, then
from fxprune.planning.difference import PlanDiff, diff
from fxprune.planning.edits import GO, STAY, edited
from fxprune.planning.fields import PlanFields, Removed
from fxprune.planning.plan_file import load, save

__all__ = ["Plan", "Removed"]


@dataclass(frozen=True)
class Plan(PlanFields):
    """The removed indices of every parameter and buffer, in the numbering of the model that the plan was made for.

    removed: parameter or buffer -> {dimension: sorted indices}. Names of tied parameters all appear.
    reasons: why something that was asked for stays.
    zeroed: with folded constants, the indices that the reference sets to zero; None where they are the removed ones.
    biases: the layers, and "%node"s of functions, that get a bias, to take constants up.
    maps: the nodes to whose results a map of constants is added.
    sizes: the recounted numbers, and where they stand; known after a rewrite, so in `record(small).plan`.
    structure: the model that it was made for; None where a plan was written by hand.
    path: the path that it was made on, "" where that is not known.
    versions: of the packages that wrote the file it was read from.
    factors: the parts of parameters that are multiplied, because code of the small model computes another scale from a
        smaller width; known after a rewrite, as `sizes` are. Weights of RMS norms that norms="preserve" multiplies are
        none of them: `record(small).reasons` names those.
    outputs: the parts of the model's result that count as outputs, as paths; None if all do. See `fxprune.transform`.
    dropped: the residual branches that go whole, before any channel does. `removed` and `structure` are about the model
        without them.
    norms: "preserve" or "kept", as in `fxprune.transform`, which takes those of the plan where none are given.
    """

    def __bool__(self) -> bool:
        return bool(self.removed or self.dropped)

    def _repr_html_(self) -> str:
        shapes = {} if self.structure is None else self.structure.shapes
        rows = [
            (name, str(dim), f"{len(gone)} of {shapes[name][dim]}" if name in shapes else str(len(gone)))
            for name, dims in self.removed.items()
            for dim, gone in dims.items()
        ]
        title = "Plan: removes nothing" if not rows else f"Plan: removes from {counted(len(self.removed), 'tensor')}"
        return html_table(title, ("tensor", "dim", "removed"), rows, right=(1, 2))

    @property
    def kept(self) -> Removed:
        """The kept indices, in the same form as `removed`. Raises `PlanError` where the plan knows no shapes."""
        return kept(self)

    @checks_arguments()
    def save(self, path: PathLike) -> None:
        """Write the plan as JSON (`docs/files.md`), whole or not at all.

        The same plan always gives the same bytes, also after it was loaded. Raises `PlanError` for a plan that was
        written by hand: it does not know the model that it is for.
        """
        save(self, path)

    @classmethod
    @checks_arguments()
    def load(cls, path: PathLike) -> Plan:
        """The plan in a file. Raises `PlanError` for a wrong file, with the key, the value and the rule that it breaks.

        >>> import os, tempfile, torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxprune.analyze(net, torch.randn(1, 4)).plan(ratio=0.5)
        >>> path = os.path.join(tempfile.mkdtemp(), "plan.json")
        >>> plan.save(path)
        >>> fxprune.Plan.load(path) == plan
        True
        """
        return load(path, cls)

    @checks_arguments("analysis", "exact")
    def remove(self, layer: Any, indices: Any = None, *, analysis: Findings | None = None, exact: bool = False) -> Plan:
        """A plan that removes further channels, with everything that is coupled to them.

        Args:
            layer: a layer or a group, as in `ratio={...}`. Several edits that fit only together are a dict: {layer:
                indices}.
            indices: one or several: output channels of a layer, or positions among the channels of a group, such as
                heads of "attn.q:heads". They count in the original.
            analysis: of the model, for a plan from a file or a record. A plan of `analysis.plan` knows its own.
            exact: True to refuse channels whose removal changes a statistic.

        Raises `PlanError` if the edit does not fit: an index that goes already, a part of a head, a layer that would be
        empty, widths that the forward needs to be equal, channels that are locked.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxprune.analyze(net, torch.randn(1, 4)).plan(counts={"0": 6})
        >>> plan = plan.restore("0", plan.removed["0.weight"][0])
        >>> plan.remove("0", [1, 2]).removed
        {'0.weight': {0: [1, 2]}, '0.bias': {0: [1, 2]}, '2.weight': {1: [1, 2]}}
        """
        return edited(self, GO, layer, indices, analysis, exact=exact)

    @checks_arguments("analysis")
    def restore(self, layer: Any, indices: Any = None, *, analysis: Findings | None = None) -> Plan:
        """A plan in which some channels stay, with everything that is coupled to them. See `remove`."""
        return edited(self, STAY, layer, indices, analysis)

    @checks_arguments()
    def then(self, second: Plan) -> Plan:
        """One plan for two prunings, in the numbering of this plan's model. second: a plan for the small model.

        Raises `PlanError` where `second` is for another model than the one that this plan leaves.
        """
        return then(self, second)

    @checks_arguments()
    def diff(self, second: Plan) -> PlanDiff:
        """The indices that one plan removes and the other keeps.

        Raises `PlanError` where they are for different models.
        """
        return diff(self, second)
