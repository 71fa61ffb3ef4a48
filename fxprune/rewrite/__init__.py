"""Plan and analysis become the smaller model: parameters, module attributes, sizes in the graph."""

from fxprune.rewrite import attention, positions, recurrent

REGISTERED = (attention, positions, recurrent)
"""The modules whose import registers how layers with several counts, and positions in graphs, are counted anew."""
