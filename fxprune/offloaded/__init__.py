"""Models that accelerate has dispatched: their weights lie on several devices, in memory or on disk.

While such a model is pruned, a `StoredTensor` stands where each of its offloaded weights stood: any operation on it
reads the weight, and drops it afterwards. So at most one is in memory at a time. The weights of the small model are
written where those of the model are: those on disk into a new folder beside it. At the end the small model gets the
hooks of accelerate, each with the weights of its own module.
"""

from fxprune.offloaded.hooks import Dispatch, dispatch_of, is_dispatched, refuse_dispatched, without_hooks
from fxprune.offloaded.reading import let_library_read
from fxprune.offloaded.stored import StoredTensor

__all__ = [
    "Dispatch",
    "StoredTensor",
    "dispatch_of",
    "is_dispatched",
    "let_library_read",
    "refuse_dispatched",
    "without_hooks",
]
