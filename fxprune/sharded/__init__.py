"""Models whose parameters are sharded over processes, by `torch.distributed.fsdp.fully_shard`.

While such a model is pruned, a `WholeOnDemand` stands where each of its parameters stood: any operation on it works on
the whole tensor, which all processes gather for it and drop afterwards. So at most one is whole at a time. `Talk` makes
processes that come to different places raise, instead of waiting for each other.
"""

from fxprune.sharded.on_demand import WholeOnDemand
from fxprune.sharded.plain_model import talk_of_model, unwrapped
from fxprune.sharded.settings import Wrapping
from fxprune.sharded.shards import is_sharded
from fxprune.sharded.talk import Talk
from fxprune.sharded.wrapped_again import sharded_parameters, wrap_again

__all__ = [
    "Talk",
    "WholeOnDemand",
    "Wrapping",
    "is_sharded",
    "sharded_parameters",
    "talk_of_model",
    "unwrapped",
    "wrap_again",
]
