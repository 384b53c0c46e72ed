"""LoRAC and LoRAC-IPC (arXiv 2504.13407): orthonormal branches, weighed by trained scalars; vital modules stay as they are.

At stage t, in an adapted module with weight W (d_out, d_in), A_i (r, d_in), B_i (d_out, r) and s = alpha / r:

    y = W x + sum_{i<t} omega_i s B_i A_i x + s B_t A_t x

The earlier A_i and B_i are frozen. A_t, B_t and the scalars omega_1..omega_(t-1) of every module train; omega_i is 1 when
its branch is new. Over the modules with a new branch,

    loss = CE + lambda sum_modules ||A_all A_all^T - I||_F,    A_all (t r, d_in) = A_1..A_t stacked,

so each branch's rows become orthonormal, and orthogonal to those of all earlier ones.

IPC (`ipc=true`), important parameter constraints. At optimizer step k, with g the gradient of the cross-entropy over the
global batch, the importance of a module and its two running means, which start at 0, are

    I_k = mean |B_t * g(B_t)|,    M <- b1 M + (1 - b1) I_k,    U <- b2 U + (1 - b2) |I_k - M| .

After the stage the modules with the largest M U become critical for good: they get no further branch, and their omega
are fixed. Released code: learninginvision/LoRAC-IPC, for vision transformers; there are no published language results.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.branch_scalars import BranchScalars
from raycl.fields import Weight, at_stage
from raycl.files import Json
from raycl.methods.common.base import About, Gradients, InPeft, Moments, Penalty, Step
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import lora_settings
from raycl.state.stage_state import StagePart, StageState

OMEGA = "omega/"
IPC = {"critical_share", "share_of", "beta1", "beta2"}
"""Hyper-parameters that only IPC reads."""


class LoracParams(LoraParams):
    """LoRAC's hyper-parameters."""

    name: Literal["lorac"] = Field(default="lorac", description="orthonormal branches weighed by trained scalars")
    ortho: Weight | list[Weight] = Field(
        default=1.0,
        description="lambda, weight of sum ||A_all A_all^T - I||_F (released: default 1, scripts 0.1 to 5); per stage",
    )
    omega_lr: float = Field(
        default=1.0, gt=0, description="learning rate of omega, as a multiple of train.lr (released scripts: 1 or 0.1)"
    )
    ipc: bool = Field(default=False, description="LoRAC-IPC: the most important modules get no further branch")
    critical_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the modules, rounded down, that a stage makes critical (released: 0.05, 0.1)",
    )
    share_of: Literal["remaining", "all"] = Field(
        default="remaining",
        description="share of the modules not yet critical, or of all, as the released default has it",
    )
    beta1: float = Field(default=0.85, ge=0, lt=1, description="b1, smoothing of the importance")
    beta2: float = Field(default=0.85, ge=0, lt=1, description="b2, smoothing of its deviation")

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """lambda may change from stage to stage."""
        return super().per_stage_fields() | {"ortho"}

    def inert(self, stage: int) -> frozenset[str]:
        """There are no scalars to train at stage 1; without IPC its settings have no effect."""
        return super().inert(stage) | (set() if self.ipc else IPC) | ({"omega_lr"} if stage == 1 else set())


class Lorac(LoraMethod[LoracParams]):
    """IncLoRA with trained scalars, the orthonormality loss and, on demand, critical modules."""

    Params = LoracParams
    about = About(
        title="orthonormal branches weighed by trained scalars; optionally critical modules stay as they are",
        paper="LoRAC and LoRAC-IPC, arXiv 2504.13407",
        trains="A and B of a new branch, and one scalar per earlier branch and module",
        growth="r (d_in + d_out) per adapted module and task, and t scalars per module at stage t",
        frozen="the backbone, A and B of all earlier branches; with `ipc` the critical modules as a whole",
        penalised="the distance of all branches' down-projections, stacked, from orthonormal rows",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module; zeros where the module is critical",
            "omega": "(t,) of every adapted module: the scalars of branches 1..t as they stood after the stage",
        },
        mergeable=True,
        differences=(
            "The released code takes the importance of a whole effective weight, mean |W * dL/dW|, which needs a buffer of "
            "W's size per module; here it is that of B_t, whose gradient is s (dL/dW) A_t^T.",
            "By default it makes a share of all modules critical after each task, and none is left after 1 / share tasks: "
            "`method.share_of=all`. Here it is a share of the remaining ones (its option `new_mask`), and one stays free.",
            "It scales a branch by 1 / r (alpha = 1) with learning rates of 0.006 to 0.03; alpha and the rate here are "
            "those of the other LoRA methods.",
            "Its training of the classifier on class statistics (task adaptive prediction) has no counterpart in "
            "text-to-text learning and is left out.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA; there are no published settings for language models."""
        return lora_settings(family, order)

    @property
    def follows_gradients(self) -> bool:
        """IPC's importance is made of them."""
        return self.params.ipc

    @classmethod
    def in_peft(cls, params: LoracParams) -> InPeft:
        """Branches have weights of their own in every layer, the same for all inputs."""
        return "fixed"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Frozen branches with their scalars, and a new branch where the module is not critical."""
        super().install(backbone, state)
        self.critical: list[str] = state.last.facts.get("critical", []) if state.last else []
        self.free = [path for path in self.branches.layers if path not in self.critical]
        for path in self.critical:
            for weight in (self.branches.layers[path].down, self.branches.layers[path].up):
                weight.data.zero_()
                weight.requires_grad_(False)
        self.old_a = {path: _stacked_a(state, path).to(backbone.device) for path in self.free if state.last}
        self.offsets = {path: _distance(a) for path, a in self.old_a.items()}
        self.importance, self.deviation = (torch.zeros(len(self.free), device=backbone.device) for _ in range(2))
        self._weigh(state)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches under the last stage's scalars."""
        super().serve(backbone, state)
        self.free = []
        self._weigh(state)

    def condition(self, inputs: Inputs) -> None:
        """Compute the scalars once per forward pass."""
        self.omega = self._omega()

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The orthonormality term, where its weight is not 0."""
        weight = at_stage(self.params.ortho, self.info.stage)
        return {"orthonormality": Penalty(self._distances(), weight)} if weight > 0 else {}

    def gradients(self, gradients: Gradients) -> None:
        """Update the running means of the importance. The penalty has no part in the gradient of B."""
        layers = [self.branches.layers[path] for path in self.free]
        now = torch.stack([_sensitivity(layer.up, gradients.get(layer.up)) for layer in layers])
        self.importance.lerp_(now, 1 - self.params.beta1)
        self.deviation.lerp_((now - self.importance).abs(), 1 - self.params.beta2)

    def running(self) -> Mapping[str, Tensor]:
        """The running means."""
        return {"importance": self.importance, "deviation": self.deviation} if self.params.ipc else {}

    def consolidate(self, moments: Moments) -> StagePart:
        """The trained branch, and the scalars of all branches: 1 for the new one."""
        omega = self._omega().detach().cpu()
        tensors = {f"{OMEGA}{path}": omega[index].clone() for index, path in enumerate(self.branches.layers)}
        return StagePart(self.info.task, self.branch(), tensors, self.facts())

    def modules(self) -> dict[str, nn.Module]:
        """The scalars, once there is an earlier branch."""
        return {} if self.scalars is None else {"omegas": self.scalars}

    def measures(self) -> dict[str, float]:
        """Mean and range of the scalars."""
        if self.scalars is None:
            return {}
        values = self.scalars.values().detach()
        return {"omega_mean": values.mean().item(), "omega_min": values.min().item(), "omega_max": values.max().item()}

    def facts(self) -> dict[str, Any]:
        """The critical modules from now on."""
        return {"critical": sorted([*self.critical, *self._chosen()])} if self.params.ipc else {}

    def _weigh(self, state: StageState) -> None:
        """Put the last stage's scalars in charge of all branches but the newest, which counts as it is."""
        self.scalars: BranchScalars | None = None
        layers, old = self.branches.layers, self.branches.count - 1
        if old:
            start = torch.stack([state.newest.tensors[f"{OMEGA}{path}"][:old] for path in layers])
            free = torch.tensor([path in self.free for path in layers])
            self.scalars = BranchScalars(start, free, self.params.omega_lr).to(self.branches.backbone.device)
            for index, layer in enumerate(layers.values()):
                layer.mixer = partial(self._weights, index)
        self.omega = self._omega()

    def _omega(self) -> Tensor:
        """omega_1..omega_(t-1) as they are now, and 1 for the newest branch, (modules, t)."""
        newest = torch.ones(len(self.branches.layers), 1, device=self.branches.backbone.device)
        return newest if self.scalars is None else torch.cat([self.scalars.values(), newest], dim=1)

    def _weights(self, index: int, layer: nn.Module, old: Tensor | None, new: Tensor) -> Tensor:
        """The scalars of a module, the same for every token, (1, 1, t)."""
        return self.omega[index][None, None]

    def _distances(self) -> Tensor:
        """sum over free modules of ||A_all A_all^T - I||_F, block by block; gradients reach A_t only."""
        with torch.autocast(self.branches.backbone.device.type, enabled=False):
            terms = []
            for path in self.free:
                a = self.branches.layers[path].down
                blocks = [_distance(a)]
                if path in self.old_a:
                    blocks += [self.offsets[path], 2**0.5 * (self.old_a[path] @ a.T).norm()]
                terms.append(torch.stack(blocks).norm())
            return torch.stack(terms).sum()

    def _chosen(self) -> list[str]:
        """The free modules that become critical: the largest scores, at least one module stays free."""
        modules = len(self.free) if self.params.share_of == "remaining" else len(self.branches.layers)
        count = min(int(self.params.critical_share * modules), len(self.free) - 1)
        scores = (self.importance * self.deviation).tolist()
        return [path for _, path in sorted(zip(scores, self.free, strict=True), key=lambda pair: (-pair[0], pair[1]))][
            :count
        ]


def _stacked_a(state: StageState, path: str) -> Tensor:
    """A_1..A_(t-1) of a module, (sum of ranks, d_in), fp32."""
    return torch.cat([branch.a[path] for branch in state.branches])


def _distance(a: Tensor) -> Tensor:
    """||A A^T - I||_F."""
    return (a @ a.T - torch.eye(len(a), device=a.device)).norm()


def _sensitivity(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """mean |w g| over a matrix; no gradient counts as 0."""
    return weight.new_zeros(()) if gradient is None else (weight.detach() * gradient).abs().mean()
