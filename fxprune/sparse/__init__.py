"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""
