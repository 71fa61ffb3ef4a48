"""Capturing a model: its forward as a graph, one front end per path, and the run of that graph on fake tensors."""
