"""Accuracy at a budget without training: fxprune, Torch-Pruning and NVIDIA's FastNAS on the same models, data and MACs.

`tasks.py` has the models, their data and their scores, `ours.py` and `peers.py` the ways to a small model, `run.py` the
measurements, which go to a file of JSON lines, and `tables.py` the tables of docs/benchmarks.md made of them.
"""
