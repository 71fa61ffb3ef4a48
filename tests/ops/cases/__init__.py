"""The op table: one row per operation and form, with what must happen to the channels that enter it.

Every row is run inside the same net, producer -> operation -> consumer, where the producer opens the channels of
one axis and the consumer sums over them. Sizes are prime where the operation lets them be, so that no two axes can
be taken for each other; weights have both signs. Rows stand by family, in the files of `fxprune/ops/`; three more files
hold other spellings, sums over what removed slots carry, and operations without a rule.
"""

from __future__ import annotations

from tests.ops.cases.attention import ATTENTION
from tests.ops.cases.contraction import CONTRACTIONS
from tests.ops.cases.elementwise import ELEMENTWISE
from tests.ops.cases.indexing import INDEXING
from tests.ops.cases.leftovers import LEFTOVERS
from tests.ops.cases.linear_algebra import LINEAR_ALGEBRA
from tests.ops.cases.movement import MOVEMENT
from tests.ops.cases.normalization import NORMALIZATIONS
from tests.ops.cases.pooling import POOLING
from tests.ops.cases.recurrent import RECURRENT
from tests.ops.cases.reduction import REDUCTIONS
from tests.ops.cases.row import RANDOM, Op, OpCase
from tests.ops.cases.spellings import SPELLINGS
from tests.ops.cases.transforms import TRANSFORMS
from tests.ops.cases.unruled import UNRULED

__all__ = ["CASES", "RANDOM", "Op", "OpCase"]

CASES: tuple[OpCase, ...] = (
    *CONTRACTIONS,
    *NORMALIZATIONS,
    *ELEMENTWISE,
    *MOVEMENT,
    *POOLING,
    *REDUCTIONS,
    *INDEXING,
    *TRANSFORMS,
    *LINEAR_ALGEBRA,
    *ATTENTION,
    *RECURRENT,
    *SPELLINGS,
    *LEFTOVERS,
    *UNRULED,
)
