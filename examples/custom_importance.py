"""How do I rank channels by a criterion of my own, through an operator of my own?

An importance is a callable that takes a group and returns one score per channel, higher means keep. An operator
that fxprune does not know gets a rule: a few lines that say what becomes of the channels.

    python examples/custom_importance.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


@torch.library.custom_op("fxprune_examples::gate", mutates_args=())
def gate(x: Tensor, strength: Tensor) -> Tensor:
    """y[n, c, s] = x[n, c, s] * sigmoid(strength[c])"""
    return x * torch.sigmoid(strength)[:, None, None]


@gate.register_fake
def _(x: Tensor, strength: Tensor) -> Tensor:
    return torch.empty_like(x)


@fxprune.rule("fxprune_examples::gate")
def gate_rule(call, x, strength):
    """One strength per channel: both go together, and a channel that is zero before is zero after."""
    call.same(x.dim(1), strength.dim(0))
    return call.operand(x.vectors, x.zero)


class Gated(nn.Module):
    """Convolutions whose channels pass a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.strength = nn.Parameter(torch.linspace(-3, 3, 16)[torch.randperm(16)])
        self.second = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to 8 channels of the same size."""
        return self.second(torch.ops.fxprune_examples.gate(self.first(x), self.strength))


def by_gate(group: fxprune.Group) -> Tensor:
    """The strength of the gate where the group passes one, else the norm of the producer's weights."""
    for member in group.members:
        if member.parameter == "strength":
            return member.per_channel(member.tensor.detach(), group.size)
    producer = group.producer
    others = [d for d in range(producer.tensor.ndim) if d != producer.dim]
    return producer.per_channel(producer.tensor.detach().square().sum(others), group.size).sqrt()


def main() -> None:
    """Prune the channels whose gates are most closed."""
    torch.manual_seed(0)
    net, x = Gated().eval(), torch.randn(1, 3, 8, 8)
    analysis = fxprune.analyze(net, x, strict=True)  # strict: raise if an operation had no rule
    print(analysis.report())

    small = fxprune.transform(net, x, plan=analysis.plan(ratio=0.25, importance=by_gate))
    gone = fxprune.record(small).removed["strength"][0]
    print(f"gates that went: {sorted(round(net.strength[i].item(), 2) for i in gone)}")
    print(f"gates that stay: {sorted(round(s, 2) for s in small.get_parameter('strength').tolist())}")
    assert net.strength[gone].max() < small.get_parameter("strength").min()


if __name__ == "__main__":
    main()
