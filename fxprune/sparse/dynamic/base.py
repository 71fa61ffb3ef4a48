"""The base of the dynamically sparse layers: the counts, the mask of connections, and its update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from fxprune.arguments import fits
from fxprune.criteria.connections import Geometry, check_threshold, geometry_of
from fxprune.errors import PlanError, lay_out, nearest
from fxprune.schedules import Constant, Schedule, as_schedule
from fxprune.sparse.dynamic import selection
from fxprune.sparse.dynamic.selection import Choice, Update
from fxprune.sparse.dynamic.training_counts import accumulate

fx.wrap("accumulate")  # one node of a symbolic trace; tracing counts nothing

GROWTHS = ("coactivation", "random")

LayerT = TypeVar("LayerT", bound="DynamicSparse")


class DynamicSparse(nn.Module):
    """The first base class of `DynamicSparseConv2d` and `DynamicSparseLinear`, before the layer of torch.

    mask: buffer, bool of the weight's shape, True = active. strengths: int64 of the weight's shape, no buffer.
    """

    weight: Tensor
    mask: Tensor

    def _set_up(
        self,
        sparsity: float | Schedule | None,
        regrow: float | Schedule | None,
        *,
        dims: Sequence[int] | None,
        every: int,
        threshold: float,
        growth: str,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise PlanError(
                f"every must be an integer of at least 1, not {every!r}",
                at=type(self).__name__,
                why="connections are counted at every such step",
                do="pass 1, 2, 3, ...",
            )
        check_threshold(threshold)
        if growth not in GROWTHS:
            why = nearest(str(growth), GROWTHS)
            raise PlanError(
                f"unknown growth {growth!r}",
                at=type(self).__name__,
                why=why,
                do=f"use one of {', '.join(GROWTHS)}",
            )
        if dims is None:  # the kernel of a pair of channels, as in the notes, or an output channel
            dims = (0, 1) if sparsity is None and math.prod(self.weight.shape[2:]) > 1 else (0,)
        self.dims = _dims(dims, tuple(self.weight.shape))
        size = math.prod(n for d, n in enumerate(self.weight.shape) if d not in self.dims)
        k1, k2 = selection.counts_of_the_notes(size)
        if regrow is None:
            regrow = 1 - k1 / k2 if sparsity is None else 0.3
        sparsity = 1 - k2 / size if sparsity is None else sparsity
        self.sparsity, self.regrow = as_schedule(sparsity, what="sparsity"), as_schedule(regrow, what="regrow")
        self.every, self.threshold, self.growth = every, float(threshold), growth
        self._geometry: Geometry = geometry_of(self)  # type: ignore[arg-type]
        self.register_buffer("mask", torch.ones(self.weight.shape, dtype=torch.bool, device=self.weight.device))
        self._initialise_mask()
        size, asked = self._slice_size(), self.sparsity(0)
        if (1 - asked) * size < 0.5:
            why = f"each slice of {size} connections keeps one, which makes {1 - 1 / size:.3g}"
            do = "choose dims with larger slices"
            warnings.warn(lay_out(f"a sparsity of {asked:.3g} is out of reach", why=why, do=do), stacklevel=3)

    def _slice_size(self) -> int:
        """The number of connections that compete with each other."""
        return math.prod(n for d, n in enumerate(self.mask.shape) if d not in self.dims)

    @torch.no_grad()
    def _initialise_mask(self) -> None:
        """Draws a random mask, sets the weight to zero where it is False, and resets the counts."""
        # Not a buffer: DistributedDataParallel would overwrite the counts of every rank by those of the first.
        self.strengths = torch.zeros_like(self.mask, dtype=torch.int64)
        self._tally = torch.zeros(2, dtype=torch.int64, device="cpu")  # reading it waits for no device
        _, active = self._active_counts(0)
        self.mask.copy_(selection.initial(self.weight, self.dims, active))
        self.weight.copy_(self.masked_weight())

    @property
    def steps(self) -> int:
        """The number of forwards in training mode."""
        return int(self._tally[0])

    @property
    def opportunities(self) -> int:
        """The number of times that each weight was used in the counted forwards since the last update."""
        return int(self._tally[1])

    def masked_weight(self) -> Tensor:
        """Returns the weight, exactly 0 where the mask is False; the gradient there is 0 too, never inf or NaN."""
        return torch.where(self.mask, self.weight, 0.0)

    def _count_coactivation(self, input: Tensor, output: Tensor) -> None:
        self._reset_if_pruned()
        every = self.every if self.growth == "coactivation" else 0
        accumulate(input, output, self.strengths, self._tally, every, self.threshold, self._geometry)

    def _reset_if_pruned(self) -> None:
        """Follows a pruning of channels, which made the mask smaller, perhaps not the strengths."""
        if self._geometry.groups != getattr(self, "groups", 1):
            self._geometry = geometry_of(self)  # type: ignore[arg-type]
        if self.strengths.shape != self.mask.shape:
            self.strengths = torch.zeros_like(self.mask, dtype=torch.int64)
            self._tally[1] = 0
            self._geometry = geometry_of(self)  # type: ignore[arg-type]

    def _active_counts(self, step: int) -> tuple[int, int]:
        """Returns (k1, k2) of every slice at a step: k2 connections are active, and k1 of them keep their value."""
        values = []
        for name, schedule in (("sparsity", self.sparsity), ("regrow", self.regrow)):
            value = schedule(step)
            if not fits(value, float) or not 0 <= value < 1:
                raise PlanError(
                    f"{name} must be in [0, 1), not {value!r}",
                    at=f"step {step}",
                    why="it is a share of the connections of a slice, some of which stay",
                    do=f"pass {name}=0.5, or a schedule that gives such numbers",
                )
            values.append(value)
        return selection.shares(self._slice_size(), *values)

    @torch.no_grad()
    def update(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
        process_group: Any = None,
    ) -> Update:
        """Prunes and regrows connections, in place, and resets the strengths to 0.

        Each slice of the weight (see `dims`) has n connections. After the update k2 = (1 - sparsity) * n of them are
        active, and k1 = (1 - regrow) * k2 keep their value. With growth="coactivation" the k2 strongest connections
        become active, whether they were active before or not. The k1 strongest keep their value, unless they were not
        active; the others get a new value. With growth="random" k1 of the active connections stay, and k2 - k1 of the
        others become active with a new value. (This follows Mocanu et al. 2018, "Scalable training of artificial neural
        networks with adaptive sparse connectivity", who however prune the smallest weights.)

        Call it between `optimizer.step()` and the next forward. If `torch.distributed` is initialised, all ranks must
        call it: counts are summed over the ranks, and all ranks get the mask and the new values of the first rank.

        Args:
            optimizer: the one that trains the weight. Its state of the weight's shape (momenta, averages) and the
                gradient become 0 where a connection is pruned or new. Without it, momentum still changes the stored
                value of a pruned weight, which forward does not use.
            generator: for new values and random choices.
            process_group: the ranks that train this layer together; all by default.

        Raises `PlanError`, before any change, if the optimizer does not hold the weight, or if nothing was counted
        since the last update.
        """
        selection.check_optimizer(optimizer, self.weight)
        if self.weight.shape != self.mask.shape:
            raise PlanError(
                "the weight has another shape than its mask",
                at=type(self).__name__,
                why=f"{tuple(self.weight.shape)} and {tuple(self.mask.shape)}: it is sharded, or was replaced",
                do="update where the whole weight is",
            )
        self._reset_if_pruned()
        distributed = dist.is_available() and dist.is_initialized()
        strengths, tally = self.strengths, self._tally
        if distributed:
            strengths, tally = _sum_over_ranks(strengths, tally, process_group)
        steps = int(tally[0])
        k1, k2 = self._active_counts(steps)
        choice = self._choose(strengths, int(tally[1]), k1, k2, generator)
        values = torch.where(choice.fresh, selection.new_values(self.weight, generator), self.weight)
        values = torch.where(choice.active, values, 0.0)
        if distributed:
            choice, values = _from_first_rank(choice, values, process_group)
        before = self.mask.clone()
        self.mask.copy_(choice.active)
        self.weight.copy_(values)
        selection.forget(optimizer, self.weight, choice.fresh | ~choice.active)
        self.strengths.zero_()
        self._tally.copy_(torch.tensor([steps, 0]))
        done = Update(
            kept=int((choice.active & ~choice.fresh).sum()),
            grown=int(choice.fresh.sum()),
            pruned=int((before & ~choice.active).sum()),
            sparsity=1 - float(choice.active.double().mean()),
        )
        if self.growth == "random" and isinstance(self.regrow, Constant) and not done.grown and not done.pruned:
            why = f"each slice keeps {k1} of {k2} active connections: regrow={self.regrow(steps):.3g} rounds to none"
            do = "raise regrow, or choose dims with larger slices"
            warnings.warn(lay_out("the update changed nothing", why=why, do=do), UserWarning, stacklevel=3)
        return done

    def _choose(
        self, strengths: Tensor, opportunities: int, k1: int, k2: int, generator: torch.Generator | None
    ) -> Choice:
        if self.growth == "random":
            return selection.random(self.mask, self.dims, k1, k2, generator)
        if not opportunities:
            raise PlanError(
                "no coactivation was counted since the last update",
                at=str(self),
                why=f"forward counts at every {self.every}th step in training mode, and there were {self.steps} steps",
                do="train first, or lower every",
            )
        if not strengths.any():
            why = f"over {opportunities} opportunities no input and output of a connection were both > {self.threshold}"
            do = "lower the threshold, or look at inputs that are larger"
            text = lay_out(
                "all strengths are 0, the choice is by the size of the weights", at=str(self), why=why, do=do
            )
            warnings.warn(text, UserWarning, stacklevel=4)
        return selection.strongest(strengths, self.weight, self.mask, self.dims, k1, k2)

    def progress_connections(self, optimizer: torch.optim.Optimizer | None = None, **options: Any) -> Update:
        """Calls `update`, under the name that it has in the notes."""
        return self.update(optimizer, **options)

    def reset_parameters(self) -> None:
        """Draws new weights and a new mask, and resets the counts."""
        super().reset_parameters()  # type: ignore[misc]
        if "mask" in self._buffers:  # missing when torch's __init__ calls this
            self._initialise_mask()

    def extra_repr(self) -> str:
        """The text of torch's layer, then sparsity and growth."""
        return f"{super().extra_repr()}, sparsity={self.sparsity(self.steps):.3g}, growth={self.growth!r}"

    def _apply(self: LayerT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerT:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.strengths = fn(self.strengths)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._reset_if_pruned()
        destination[prefix + "strengths"] = self.strengths
        destination[prefix + "tally"] = self._tally

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        _, _, missing, _, errors = args
        own = {prefix + "strengths": self.strengths, prefix + "tally": self._tally}
        rest = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(rest, prefix, *args)
        for key, tensor in own.items():
            loaded = state_dict.get(key)
            if loaded is None:
                missing.append(key)
            elif loaded.shape != tensor.shape:
                errors.append(f"size mismatch for {key}: {tuple(loaded.shape)} for {tuple(tensor.shape)}.")
            else:
                tensor.copy_(loaded)


def _dims(dims: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    found = tuple(dims) if isinstance(dims, (tuple, list)) else (dims,)
    names = [d for d in found if isinstance(d, int) and not isinstance(d, bool) and 0 <= d < len(shape)]
    if names != list(found) or len(set(names)) < len(names):
        raise PlanError(
            f"dims must be different dimensions of the weight, 0 to {len(shape) - 1}, not {dims!r}",
            at=f"a weight of shape {shape}",
            why="each combination of their indices is a slice",
            do="pass (0,) for a slice for each output, or () for one slice",
        )
    if math.prod(n for d, n in enumerate(shape) if d not in names) < 2:
        raise PlanError(
            f"dims={found} leave nothing to choose",
            at="the layer",
            why=f"a weight of shape {shape} has then one connection in each slice",
            do="name fewer dimensions",
        )
    return tuple(names)


def _sum_over_ranks(strengths: Tensor, tally: Tensor, process_group: Any) -> tuple[Tensor, Tensor]:
    """Returns strengths and opportunities summed over all ranks, and the largest number of steps of a rank."""
    total, steps = strengths.clone(), tally[:1].to(strengths.device)
    opportunities = tally[1:].to(strengths.device, copy=True)
    dist.all_reduce(total, dist.ReduceOp.SUM, group=process_group)
    dist.all_reduce(opportunities, dist.ReduceOp.SUM, group=process_group)
    steps = steps.clone()
    dist.all_reduce(steps, dist.ReduceOp.MAX, group=process_group)
    return total, torch.cat([steps, opportunities]).cpu()


def _from_first_rank(choice: Choice, values: Tensor, process_group: Any) -> tuple[Choice, Tensor]:
    """Returns choice and values of the first rank, whose random numbers all ranks use."""
    codes = choice.active.to(torch.uint8) + 2 * choice.fresh.to(torch.uint8)
    values = values.contiguous()
    dist.broadcast(codes, group=process_group, group_src=0)
    dist.broadcast(values, group=process_group, group_src=0)
    return Choice(codes % 2 == 1, codes >= 2), values
