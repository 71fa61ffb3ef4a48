"""The rewrite: a copy of the model gets smaller parameters, new attributes of modules, and new sizes in its graph."""

from fxprune.rewrite import attention

REGISTERED = (attention,)
"""The modules whose import registers how layers of several operations are recounted."""
