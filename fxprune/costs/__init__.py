"""Costs of a model, and of the model that a plan would make: parameters, bytes, MACs, memory; measured latency."""

from fxprune.costs.active import ActiveParams, active_params
from fxprune.costs.cache import CacheBytes, cache_bytes
from fxprune.costs.count import Cost, LayerCost, cost, cost_of
from fxprune.costs.latency import Latency, measure, measured_in_turn
from fxprune.costs.latency_file import LatencyFile
from fxprune.costs.latency_table import LatencyTable, contradicted
from fxprune.costs.marginal import ChannelCost, all_but_one, per_channel, withheld
from fxprune.costs.memory import PeakMemory, peak_memory

__all__ = [
    "ActiveParams",
    "CacheBytes",
    "ChannelCost",
    "Cost",
    "Latency",
    "LatencyFile",
    "LatencyTable",
    "LayerCost",
    "PeakMemory",
    "active_params",
    "all_but_one",
    "cache_bytes",
    "contradicted",
    "cost",
    "cost_of",
    "measure",
    "measured_in_turn",
    "peak_memory",
    "per_channel",
    "withheld",
]
