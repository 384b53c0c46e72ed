"""The stacked LoRA layer: PEFT holds the current branch, this layer integrates it with all frozen ones.

    y = W x + B_old diag(c_old) A_old x + c_t s_t B_t A_t x

A_old stacks the frozen down-projections, (K, d_in) with K the sum of their ranks, and B_old the frozen up-projections,
(d_out, K), each scaled by its branch's alpha / rank. c holds one weight per branch, from the layer's mixer (gates), or 1.
Old branches cost two matrix products however many they are; the gate acts in rank space, so no (branches, d_out)
features are ever built. Where nothing weighs them, they cost none: over an fp32 weight they are folded into a copy of it,
W + B_old A_old, which is the same sum to fp32 round-off. A bf16 weight keeps its stack: next to its own rounding, 1/256 of
a number, most of a branch would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from raycl.state.stage_state import Branch

CURRENT = "branch"
"""PEFT's adapter name of the branch that is trained (or, when serving, of the newest one)."""

Mixer = Callable[["StackedLora", "Tensor | None", Tensor], Tensor]
"""Gives the weights of all branches, oldest first: (B or 1, S or 1, T), for all tokens of an input or for each.

It sees the layer and the branches' rank-space features: A_old x (B, S, K), or none at stage 1, and s A_t x (B, S, r).
"""

Update = Callable[[Tensor], "Tensor | None"]
"""Gives what is added to the base layer's output (B, S, d_out), from the layer's input (B, S, d_in); none = nothing."""


class StackedLora(nn.Module, LoraLayer):
    """PEFT LoRA layer for a linear module (see `carriers`) with one current branch and a stack of frozen ones."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **kwargs)
        self.set_adapter(adapter_name)
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        self.mixer: Mixer | None = None
        self.update: Update | None = None
        """What stands in the place of the branches' sum; none = the sum does."""
        self.register_buffer("frozen_a", None, persistent=False)
        self.register_buffer("frozen_b", None, persistent=False)
        self.register_buffer("folded", None, persistent=False)
        self.frozen_ranks: tuple[int, ...] = ()
        self.detach_old = False
        """Cut the gradient into x through the frozen branches, as GainLoRA's released code does."""

    @property
    def down(self) -> nn.Parameter:
        """A_t, the current down-projection (rank, d_in)."""
        return self.lora_A[CURRENT].get_parameter("weight")

    @property
    def up(self) -> nn.Parameter:
        """B_t, the current up-projection (d_out, rank)."""
        return self.lora_B[CURRENT].get_parameter("weight")

    def on_down(self, hear: Callable[[Tensor], None]) -> RemovableHandle:
        """Let `hear` have A_t x of every pass in which the current branch is computed, until the handle is removed."""

        def heard(module: nn.Module, inputs: Any, out: Any) -> None:
            hear(out)

        return self.lora_A[CURRENT].register_forward_hook(heard)

    def put(self, down: nn.Module, up: nn.Module) -> None:
        """Let these modules compute the current branch, x -> A_t x and z -> B_t z; each has a parameter `weight`."""
        self.lora_A[CURRENT], self.lora_B[CURRENT] = down, up

    def stack(self, path: str, branches: Sequence[Branch], computed: torch.dtype = torch.float32) -> None:
        """Stack the frozen `branches` of the module at `path`, once per stage: in the base layer's dtype, or, where its
        weights are quantised, in the dtype that the model is `computed` in."""
        if not branches:
            return
        like = self.get_base_layer().get_parameter("weight")
        dtype = like.dtype if like.is_floating_point() else computed
        self.frozen_a = torch.cat([branch.a[path] for branch in branches]).to(like.device, dtype)
        scaled = [branch.b[path] * (branch.alpha / branch.rank) for branch in branches]
        self.frozen_b = torch.cat(scaled, dim=1).to(like.device, dtype)
        self.frozen_ranks = tuple(branch.rank for branch in branches)
        self.folded = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x: (B, S, d_in) -> (B, S, d_out). With a bf16 base this runs under autocast, which casts the fp32 adapters.

        The current factors are called as modules, not read as weights, so that ZeRO-3 gathers them. Axes between B and d_in
        are taken as one of tokens; without one, (N, d_in), a mixer has no examples to weigh: ValueError.
        """
        if x.dim() > 3:
            return self(x.flatten(1, -2), *args, **kwargs).unflatten(1, x.shape[1:-1])
        if x.dim() < 3 and self.mixer is not None:
            raise ValueError(
                f"method.targets: a module of {x.shape[-1]} inputs reads the tokens of all examples in one row, so that no "
                "branch can be weighed by example; adapt other modules"
            )
        return self.add(self.base(x, *args, **kwargs), x)

    def base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + bias, and the frozen branches with it where they fold."""
        return self._with_old(x) if self.folds else self.base_layer(x, *args, **kwargs)

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """`out`, as `base` made it of x, and what the branches that are not in it add."""
        if self.update is not None:
            delta = self.update(x)
            return out if delta is None else out + delta.to(out.dtype)
        x = self.lora_dropout[CURRENT](x)
        new = self.lora_A[CURRENT](x) * self.scaling[CURRENT]
        stacked = self.frozen_a is not None and not self.folds
        old = F.linear(x.detach() if self.detach_old else x, self.frozen_a) if stacked else None
        if self.mixer is not None:
            weights = self.mixer(self, old, new).to(new.dtype)
            new = new * weights[..., -1:]
            old = None if old is None else self.weighed(old, weights[..., :-1])
        delta = self.lora_B[CURRENT](new)
        if old is not None:
            delta = delta + F.linear(old, self.frozen_b)
        return out + delta.to(out.dtype)

    @property
    def folds(self) -> bool:
        """Whether the frozen branches are a plain sum that a copy of the base layer's weight can hold: nothing weighs them,
        drops out parts of their input or takes their place, and the weight is fp32 and here whole (ZeRO-3 parts it)."""
        base = self.get_base_layer()
        if self.frozen_a is None or self.mixer is not None or self.update is not None or type(base) is not nn.Linear:
            return False
        drops = self.training and isinstance(self.lora_dropout[CURRENT], nn.Dropout)
        weight = base.weight
        return not drops and weight.dtype == torch.float32 and weight.dim() == 2 and not weight.requires_grad

    def _with_old(self, x: Tensor) -> Tensor:
        """(W + B_old A_old) x + bias; the sum is made at the first call."""
        base = cast(nn.Linear, self.get_base_layer())
        if self.folded is None:
            self.folded = torch.addmm(base.weight.detach(), self.frozen_b, self.frozen_a)
        return F.linear(x, self.folded, base.bias)

    def weighed(self, features: Tensor, weights: Tensor) -> Tensor:
        """Rank-space features (B, S, K) of the frozen branches, each branch's under its weight (B or 1, S or 1, T-1).

        Equal ranks are an axis of their own: then the backward pass keeps one weight for each branch and token, not for
        each feature."""
        if len(set(self.frozen_ranks)) > 1:
            return features * self.per_column(weights)
        return (features.unflatten(-1, (len(self.frozen_ranks), -1)) * weights[..., None]).flatten(-2)

    def per_branch(self, values: Tensor) -> Tensor:
        """Values of all rank-space features (..., K) summed up for each frozen branch, (..., T-1)."""
        if len(set(self.frozen_ranks)) > 1:
            return torch.stack([part.sum(dim=-1) for part in values.split(self.frozen_ranks, dim=-1)], dim=-1)
        return values.unflatten(-1, (len(self.frozen_ranks), -1)).sum(dim=-1)

    def per_column(self, values: Tensor) -> Tensor:
        """One value per frozen branch (..., T-1) repeated for each of its rank-space features, (..., K)."""
        repeats = torch.tensor(self.frozen_ranks, device=values.device)
        return values.repeat_interleave(repeats, dim=-1, output_size=sum(self.frozen_ranks))
