"""Costs of a model, and of the model that a plan would make: parameters, bytes and MACs, by module and in total."""

from fxprune.costs.count import Cost, LayerCost, cost, cost_of
from fxprune.costs.marginal import ChannelCost, per_channel, withheld

__all__ = [
    "ChannelCost",
    "Cost",
    "LayerCost",
    "cost",
    "cost_of",
    "per_channel",
    "withheld",
]
