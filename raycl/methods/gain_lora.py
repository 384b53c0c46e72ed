"""GainLoRA (arXiv 2505.15424): a gate per branch, closed on the inputs of earlier tasks.

    y = W x + sum_{i<=t} a_i(input) s B_i A_i x,   a_i = f(score(p_L, k_i)),   p_l = SiLU(G_l p_(l-1))

with p_0 the pooled prompt, for decoder-only models scaled to RMS 1 (`gate_input`).
The LoRA part is O-LoRA's or InfLoRA's (`over`), held as an inner method. Old branches and gates are frozen. The new gate
copies G_1..G_L of the last one; its key starts orthogonal to M_L, the span of earlier tasks' p_L; and each of its
weights moves only in the complement of its own input's subspace M_l (`ConstrainedLinear`). So every p_l, and with it
a_t, stays what it was on earlier inputs: 0, since f(0) = 0 (Proposition 3.1). After training the bases M_l grow (GPM).

Differences from the released code (liangyanshuo/gainlora): constraints by construction instead of a projection after
Adam, no row rescaling, mean pooling over real tokens, true gradient through old branches (`detach_old` cuts it).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.branches import kaiming
from raycl.adapters.constrained import constrained
from raycl.adapters.gates import Gate, GateInput, Pooling, Score, Squash, frozen_gate, pool, score, squash, unit_rms
from raycl.adapters.moments import add_rows, mean_name
from raycl.adapters.subspace import grow, joined, leading_outside
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, InPeft, Moments, Observes, StageInfo, When
from raycl.methods.common.delegate import Wrapping
from raycl.methods.common.lora import LoraMethod
from raycl.methods.common.published import gpm_settings, is_t5
from raycl.methods.inf_lora import ONE_SIDED, InfLora, SubspaceParams, stored_basis, threshold
from raycl.methods.o_lora import OLora, OrthogonalParams
from raycl.state.stage_state import StagePart, StageState

GATE = "gate/"
GATE_BASIS = "gate_basis/"
ONLY = {"o_lora": {"lambda1", "lambda2"}, "inf_lora": {"design", "epsilon", "energy_power", "layer_chunks"}}
"""Hyper-parameters that only one of the two LoRA parts reads."""
INERT_AT_FIRST = {"init_constraint", "update_constraint", "detach_old"}
"""Hyper-parameters that need an earlier task to act."""


class GainLoraParams(OrthogonalParams, SubspaceParams):
    """GainLoRA's hyper-parameters: those of the LoRA part it stands on, and the gate's."""

    name: Literal["gain_lora"] = Field(
        default="gain_lora", description="gated branches that stay closed on earlier tasks"
    )
    over: Literal["o_lora", "inf_lora"] = Field(default="o_lora", description="the LoRA part: O-LoRA or InfLoRA")
    gate_hidden: list[PositiveInt] = Field(
        default=[100], description="hidden widths of the gate: [h] means d -> h -> d (two layers), [] means d -> d"
    )
    gate_score: Score = Field(default="cosine", description="b = 4 cos(p_L, k) or p_L . k")
    gate_squash: Squash = Field(
        default="abs_tanh", description="f; all but the negative control `sigmoid` have f(0) = 0"
    )
    gate_pooling: Pooling = Field(
        default="mean_tokens", description="p_0; `mean_padded` depends on padding, as the release does"
    )
    gate_input: GateInput = Field(
        default="auto",
        description="p_0 as pooled (raw), or scaled to RMS 1 (rms); auto = rms for decoder-only models, whose token "
        "embeddings are small, raw for encoder-decoders",
    )
    gate_region: Literal["prompt", "all_input"] = Field(default="prompt", description="which tokens p_0 pools over")
    gate_epsilon: float = Field(
        default=0.995, gt=0, le=1, description="energy of the gate's features that M must capture"
    )
    gate_energy_power: Literal[1, 2] = Field(
        default=1, description="power of C's eigenvalues in that energy; 2 = the released code"
    )
    gate_chunks: PositiveInt = Field(default=1, description="diagonal blocks for p_0 and p_L; must divide d")
    key_init: Literal["data", "random"] = Field(
        default="data", description="k_t from the new task's p_L, or a random draw"
    )
    init_constraint: bool = Field(default=True, description="start k_t orthogonal to M_L (ablation: off)")
    update_constraint: bool = Field(default=True, description="move gate weights only outside M_l (ablation: off)")
    detach_old: bool = Field(
        default=False, description="cut the gradient through old branches, as the released code does"
    )

    def inert(self, stage: int) -> frozenset[str]:
        """What the LoRA part does not read, and the constraints at stage 1, where there is nothing to keep."""
        unread = ONLY["inf_lora" if self.over == "o_lora" else "o_lora"]
        return super().inert(stage) | unread | (INERT_AT_FIRST if stage == 1 else set())


class GainLora(Wrapping[GainLoraParams, LoraMethod[Any]]):
    """Gates around O-LoRA or InfLoRA."""

    Params = GainLoraParams
    version = 2
    about = About(
        title="gated branches, closed on the inputs of earlier tasks, over O-LoRA or InfLoRA",
        paper="GainLoRA, arXiv 2505.15424",
        trains="a new branch (over InfLoRA: its B) and its gate",
        growth="r (d_in + d_out) per adapted module and task, 2 h d + d per gate, and bases: at most 2 d^2 + h^2",
        frozen="the backbone, all earlier branches and gates",
        penalised="over O-LoRA: overlap of the new branch's rows with all earlier ones",
        projected="all gate weights, by construction, off the features of earlier tasks; over InfLoRA also A",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "gate": "(h, d), (d, h), (1, d): the gate's effective weights, level by level",
            "gate_basis": "(width, j): columns the stage added to the basis of the gate's features, level by level",
            "layer_basis": "over InfLoRA only, (d_in, j): columns added to the basis of a layer's inputs",
        },
        differences=(
            "The update constraint holds by construction, G = G_init + V N^T with N a basis of the complement; the released "
            "code projects the weights after Adam's step and rescales rows, which lets earlier gates open again.",
            "Prompts are pooled over real tokens; the release divides by the padded length: "
            "`method.gate_pooling=mean_padded`.",
            "The gradient through earlier branches is the true one; the release cuts it: `method.detach_old=true`.",
            "The key is aimed at the new task's data for every backbone; the fork's Llama code draws it at random: "
            "`method.key_init=random`.",
            "Of several blocks, each one's vector in the key is turned towards the new task's mean p_L; the release adds "
            "them up with whatever signs they come, so that they may cancel.",
            "Decoder-only models' p_0 is scaled to RMS 1; the release feeds it as it is: `method.gate_input=raw`.",
            "The energies that bases must capture count eigenvalues of C; the release squares them, for layers and gates: "
            "`method.energy_power=2`, `method.epsilon=0.995`, `method.gate_energy_power=2`.",
            ONE_SIDED,
        ),
    )

    def __init__(self, params: GainLoraParams, info: StageInfo) -> None:
        super().__init__(params, info)
        self.weights: Tensor | None = None
        """(B, T): the gate values of the batch at hand, oldest branch first; none before a batch was seen."""
        self.watched: Moments | None = None
        """The moments that a data pass is filling; none outside of one."""
        self.aiming = False
        """Whether that pass is the one before training, which aims the key."""

    @classmethod
    def inner_class(cls, params: GainLoraParams) -> type[LoraMethod[Any]]:
        """The LoRA part."""
        return OLora if params.over == "o_lora" else InfLora

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released scripts for T5-Large; the fork's for Llama (h = 50, four blocks).

        The release measures the gates' energy as it does the layers', by squared eigenvalues, and feeds p_0 as pooled.
        """
        settings = gpm_settings(family, order)
        settings["method"] |= {"gate_epsilon": 0.995, "gate_energy_power": 2, "gate_input": "raw"}
        if not is_t5(family):
            settings["method"] |= {"gate_hidden": [50], "gate_chunks": 4, "layer_chunks": 4}
        return settings

    @classmethod
    def passes(cls, params: GainLoraParams) -> Mapping[When, Observes]:
        """The inner method's, and one on each side for the gate; before training only where the key is aimed."""
        observed: Observes = "layers" if params.over == "inf_lora" else "inputs"
        aimed: tuple[When, ...] = () if params.key_init == "random" else ("before",)
        return dict.fromkeys((*super().passes(params), *aimed, "after"), observed)

    @classmethod
    def in_peft(cls, params: GainLoraParams) -> InPeft:
        """No branch acts without its gate."""
        return "none"

    @classmethod
    def takes(cls, params: GainLoraParams) -> bool:
        """A branch without a trained gate does not act."""
        return False

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The inner branches, all frozen gates, and a new gate inside its constraints."""
        super().install(backbone, state)
        widths = [backbone.width, *self.params.gate_hidden, backbone.width]
        self.bases = [stored_basis(state, f"{GATE_BASIS}{level}", width) for level, width in enumerate(widths)]
        self._put_gates(backbone, state, self._new_gate(state, widths))

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches under all gates."""
        super().serve(backbone, state)
        self._put_gates(backbone, state, None)

    def collect(self, when: When) -> Moments | None:
        """The inner method's moments, and those of the gate's features: before, the last one's and its mean; after, all."""
        moments = super().collect(when)
        if when == "before" and self.params.key_init == "random":
            return moments
        self.watched = {} if moments is None else moments
        self.aiming = when == "before"
        return self.watched

    @property
    def observes(self) -> Observes:
        """The gate's features need only the embeddings; InfLoRA's moments need the layers."""
        return "layers" if isinstance(self.inner, InfLora) else "inputs"

    def initialise(self, moments: Moments) -> None:
        """Design the inner branch, then aim the new key at the new task."""
        layers = {name: moment for name, moment in moments.items() if not name.startswith(GATE)}
        if layers:
            super().initialise(layers)
        if self.params.key_init == "data":
            self.gate.key.reset(self._aimed_key(moments))
            self._warn_if_closed()
        self.watched = None

    def condition(self, inputs: Inputs) -> None:
        """Compute every gate once, from the prompt's embeddings; all layers and decoding steps use these values."""
        super().condition(inputs)
        pooled = self.pooled(inputs)
        self.weights = torch.stack([gate(pooled) for gate in self.gates], dim=1)
        if self.watched is not None:
            self._watch(pooled, self.watched)

    def pooled(self, inputs: Inputs) -> Tensor:
        """p_0 (B, d) of a batch, which all gates read."""
        mask = inputs.prompt_mask if self.params.gate_region == "prompt" else inputs.mask
        pooled = pool(self.backbone.embed(inputs.ids), mask, self.params.gate_pooling)
        by_model = "raw" if self.backbone.encoder_decoder else "rms"
        how = by_model if self.params.gate_input == "auto" else self.params.gate_input
        return unit_rms(pooled) if how == "rms" else pooled

    def consolidate(self, moments: Moments) -> StagePart:
        """The inner part, the gate's effective weights, and the columns its bases gained."""
        self.watched = None
        part = super().consolidate({name: m for name, m in moments.items() if not name.startswith(GATE)})
        epsilon = threshold(self.params.gate_epsilon, self.info.stage, self.params.horizon)
        tensors = dict(part.tensors)
        tensors |= {f"{GATE}{level}": value for level, value in enumerate(self.gate.values())}
        for level, basis in enumerate(self.bases):
            moment = moments[f"{GATE}{level}"].value
            columns = grow(basis, moment, epsilon, self.params.gate_energy_power, self._chunks(level))
            tensors[f"{GATE_BASIS}{level}"] = columns.float()
        return StagePart(self.info.task, part.branch, tensors, part.facts)

    def modules(self) -> dict[str, nn.Module]:
        """The inner method's, and the gates, oldest first."""
        return {**super().modules(), "gates": self.gates}

    def measures(self) -> dict[str, float]:
        """Mean gate of each branch over the last batch, and how full the gate's feature spaces are."""
        measures = super().measures()
        measures |= {f"gate_basis_share/{i}": basis.shape[1] / basis.shape[0] for i, basis in enumerate(self.bases)}
        if self.weights is not None:
            means = self.weights.detach().mean(dim=0).tolist()
            measures |= {f"gate_mean/{index}": mean for index, mean in enumerate(means, start=1)}
        return measures

    def _put_gates(self, backbone: Backbone, state: StageState, new: Gate | None) -> None:
        """Frozen gates of the state, then the new one, all on the backbone's device and in charge of its layers."""
        self.backbone = backbone
        levels = len(self.params.gate_hidden) + 2
        old = [[part.tensors[f"{GATE}{level}"] for level in range(levels)] for part in state.parts]
        gates = [frozen_gate(weights, self.params.gate_score, self.params.gate_squash) for weights in old]
        self.gates = nn.ModuleList(gates if new is None else [*gates, new]).to(backbone.device)
        self.inner.branches.mix_by(self._current_weights)
        for layer in self.inner.branches.layers.values():
            layer.detach_old = self.params.detach_old and new is not None

    def _current_weights(self, layer: nn.Module, old: Tensor | None, new: Tensor) -> Tensor:
        """The gate values (B, 1, T): the same in every layer and for every token."""
        if self.weights is None:
            raise RuntimeError("a gated model must be conditioned on its inputs before a forward pass")
        return self.weights[:, None, :]

    def _new_gate(self, state: StageState, widths: list[int]) -> Gate:
        """G_1..G_L copied from the last gate (drawn at stage 1), a provisional key, all free only outside their M."""
        generator = self.info.generator("gate")
        last = state.last
        starts = [
            last.tensors[f"{GATE}{level}"] if last else kaiming((widths[level + 1], widths[level]), generator)
            for level in range(len(widths) - 1)
        ]
        starts.append(self._random_key(widths[-1], generator))
        bases = self.bases if self.params.update_constraint else [basis[:, :0] for basis in self.bases]
        modules = [constrained(start, basis) for start, basis in zip(starts, bases, strict=True)]
        self.gate = Gate(modules[:-1], modules[-1], self.params.gate_score, self.params.gate_squash)
        return self.gate

    def _random_key(self, width: int, generator: torch.Generator) -> Tensor:
        """k uniform in (-1, 1), off span(M_L) unless switched off, of norm sqrt(d / 3); shape (1, d)."""
        key = (torch.rand(1, width, generator=generator) * 2 - 1).double()
        if self.params.init_constraint:
            key = key - (key @ self.bases[-1]) @ self.bases[-1].T
        return self._key_norm(key)

    def _aimed_key(self, moments: Moments) -> Tensor:
        """k along the main direction of the new task's p_L outside span(M_L), per block, joined; shape (1, d)."""
        known = self.bases[-1] if self.params.init_constraint else self.bases[-1][:, :0]
        last = len(self.bases) - 1
        vectors = leading_outside(moments[f"{GATE}{last}"].value, known, self._chunks(last))
        return self._key_norm(joined(vectors[:, :, :1], moments[mean_name(f"{GATE}{last}")].value).T)

    def _key_norm(self, key: Tensor) -> Tensor:
        """Scale to sqrt(d / 3), the norm of a uniform draw; a key with no direction left stays 0 (a closed gate)."""
        norm = key.norm()
        return (key / norm * math.sqrt(key.shape[1] / 3) if norm > 1e-12 else torch.zeros_like(key)).float()

    def _chunks(self, level: int) -> int:
        """Only the d-wide features p_0 and p_L are chunked."""
        return self.params.gate_chunks if level in (0, len(self.bases) - 1) else 1

    def _watch(self, pooled: Tensor, moments: Moments) -> None:
        """Add the new gate's features of this batch to the moments being filled: those that aim the key, or all."""
        with torch.no_grad():
            features = self.gate.features(pooled)
        self.probe = features[-1]
        for level in range(len(features) - 1 if self.aiming else 0, len(features)):
            add_rows(moments, f"{GATE}{level}", features[level], self._chunks(level), mean=self.aiming)

    def _warn_if_closed(self) -> None:
        """Say so when the constraint leaves the new gate nearly closed on its own task, which then cannot be learned."""
        with torch.no_grad():
            values = squash(score(self.probe, self.gate.key(), self.params.gate_score), self.params.gate_squash)
        if self.info.stage > 1 and values.mean() < 0.05:
            warnings.warn(
                f"stage {self.info.stage} ({self.info.task}): the new gate starts at {values.mean():.3f} on its own inputs; "
                "they lie almost wholly in the span of earlier tasks. A lower method.gate_epsilon leaves it more room.",
                stacklevel=2,
            )
