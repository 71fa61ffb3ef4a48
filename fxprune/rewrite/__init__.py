"""Plan and analysis become the smaller model: parameters, module attributes, sizes in the graph."""

from fxprune.rewrite import attention, recurrent

LAYERS = (attention, recurrent)
"""The modules whose import registers how layers with more than one count are counted anew."""
