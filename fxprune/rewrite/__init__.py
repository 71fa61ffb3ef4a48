"""Plan and analysis become the smaller model: parameters, module attributes, sizes in the graph."""

from fxprune.rewrite import attention

REGISTERED = (attention,)
"""The modules whose import registers how layers of several operations are recounted."""
