"""Channels and groups as arrays of numbers: atoms, vectors, their unification, and what follows from it.

Nothing here imports torch or knows an operation.
"""
