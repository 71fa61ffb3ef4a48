"""A plan from the channels that it removes."""

from __future__ import annotations

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools
from fxprune.planning.channels import slots_of
from fxprune.planning.plan import Plan
from fxprune.planning.structure import structure_of


def plan_from(findings: Findings, removed: Bools, reasons: tuple[str, ...]) -> Plan:
    """The plan that removes these channels: their slots in every parameter and buffer, under all its names.

    removed: flags of the channels.
    """
    result = slots_of(findings, removed)
    structure = structure_of(findings, removed, result)
    return Plan(
        result,
        reasons,
        structure=structure,
        path=findings.captured.path,
        outputs=findings.results.paths,
        norms=findings.norms,
    )
