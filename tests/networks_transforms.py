"""Parts whose forward transforms functions, copies its own modules, or leaves the recording of gradients whole."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_modes import Pair
from networks_parts import part
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap


@part("transform")
class Transform(Pair):
    """`vmap` over samples and members, gradients in forward, copies, inference mode, hooks that collect."""

    kinds = "samples members stacked force autograd copied tensor shallow data inference collected replaced"

    def more(self, choose: Choices, x: Tensor) -> None:
        if self.way in ("members", "stacked"):
            self.others = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(2))
            self.members = nn.Parameter(torch.randn(2, self.width, self.width) * 0.4)
        if self.way == "collected":
            self.up.register_forward_hook(functools.partial(Transform.collect, []))

    @staticmethod
    def collect(seen: list[Tensor], module: nn.Module, args: object, made: Tensor) -> None:
        seen.append(made.detach())

    def energy(self, y: Tensor) -> Tensor:
        return torch.tanh(y).square().sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(x))

    def middle(self, x: Tensor) -> Tensor:
        if self.way == "samples":
            return vmap(lambda one: F.silu(self.up(one)))(x)
        if self.way == "inference":
            with torch.inference_mode(not torch.is_grad_enabled()):
                return self.up(x)
        if self.way == "copied":
            return copy.deepcopy(self.up)(x) if not torch.is_grad_enabled() else self.up(x)
        if self.way == "tensor":
            return F.linear(x, copy.deepcopy(self.up.weight.detach())) + self.up.bias
        if self.way == "shallow":
            return copy.copy(self.up)(x)
        if self.way == "data":
            return self.up(x) * torch.sigmoid(self.up.bias.data)
        if self.way == "replaced":
            return functional_call(self.up, {"bias": self.up.bias * 2}, (x,))
        y = self.up(x)
        if self.way == "members":
            return vmap(lambda weight: torch.tanh(y @ weight))(self.members).mean(0)
        if self.way == "stacked":
            each = [dict(member.named_parameters()) for member in self.others]
            stacked = {name: torch.stack([own[name] for own in each]) for name in each[0]}
            return vmap(lambda own: functional_call(self.others[0], own, (y,)))(stacked).sum(0)
        if self.way == "force":
            return vmap(grad(self.energy))(y)
        if self.way == "autograd":
            with torch.enable_grad():
                z = y if y.requires_grad else y.detach().requires_grad_()
                return torch.autograd.grad(self.energy(z), z, create_graph=True)[0]
        return y
