"""What a model costs, of a model and of a plan not yet applied: parameters, bytes and MACs, by module and in total."""

from fxprune.cost.count import Cost, Counter, Found, LayerCost, cost, planned
from fxprune.cost.marginal import ChannelCost, per_channel, withheld

__all__ = [
    "ChannelCost",
    "Cost",
    "Counter",
    "Found",
    "LayerCost",
    "cost",
    "per_channel",
    "planned",
    "withheld",
]
