"""Plan and analysis become the smaller model: parameters, module attributes, sizes in the graph."""
