"""A small model that its config says: it gets the attributes that its class computes from the new config.

This comes before the scales are settled, so weights carry the ratio where the class computes another scale.
"""

from __future__ import annotations

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Removal
from fxprune.configs import BeyondConfigError, ChangedByHandError, construct
from fxprune.errors import RewriteError
from fxprune.rewrite.draft import Draft


def follow_config(draft: Draft, findings: Findings, removal: Removal) -> None:
    """Give the small model its new config, and what follows from it; nothing without `uniform="config"`.

    Raises `RewriteError` where no config says what the removal leaves.
    """
    if findings.config is None:
        return
    try:
        built = findings.config.after(findings, removal)
        construct(draft.module, findings.model, findings.config.probes.before, built)
    except (BeyondConfigError, ChangedByHandError) as error:
        vectors = error.vectors if isinstance(error, BeyondConfigError) else ()
        raise RewriteError(
            f"no {findings.config.name} says what is left",
            node=next(iter(findings.captured.graph.nodes)).name,
            scope=error.scope,
            vectors=vectors,
            at=error.scope or "the model",
            why=str(error),
            do='leave out uniform="config", or remove other channels',
        ) from None
