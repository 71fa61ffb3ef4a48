"""The analysis: one run of a captured model, in which the rule of every operation unifies or locks vectors.

The result is a `Findings`: channels, groups, and the operations that lock channels.
"""
