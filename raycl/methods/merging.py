"""Model merging: train a model per stage, serve one whose weights are merged from all of them (MagMax, TIES, mean).

Stage t trains one LoRA branch (or all weights) with the cross-entropy, from where stage t - 1 ended (`base: sequential`) or
from theta_0 (`independent`). Its task vector is what it added to the backbone's weights theta_0, one tensor per weight
(d_out, d_in):

    tau_t = s B_t A_t, s = alpha / r   (a branch),      tau_t = theta_t - theta_0   (all weights)

and the served weights are theta_0 + scale * tau, with tau merged entry by entry from tau_1..tau_t:

    magmax   tau_j = the tau_(t,j) of largest magnitude                    (arXiv 2407.06322; scale 0.5)
    ties     trim: keep the largest share k of each tau_t, zero the rest;
             elect the sign of sum_t tau_(t,j);
             tau_j = mean of the nonzero tau_(t,j) that have this sign     (arXiv 2306.01708; k 0.2, scale 0.55)
    mean     tau_j = 1/t sum_t tau_(t,j)                                   (scale 1)

Branches are merged as products: A's and B's of different tasks do not correspond. The merged tau has full rank; with
`refactor_rank` r' it is served as the nearest LoRA of that rank (SVD), else in the weights themselves.
Merging takes place where a state is served, so one chain of stages gives the scores of every rule.
Sources: scales and rules as in danielm1405/magmax; its Llama row is from SLAO (arXiv 2512.23017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import Branches, LoraShape
from raycl.adapters.carriers import stored_transposed
from raycl.adapters.full_weights import FullWeights
from raycl.adapters.task_vectors import elect, largest, magnitude, mean, refactor, trim
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, Carries, InPeft
from raycl.methods.common.published import lora_settings
from raycl.methods.common.trained import LoraOrFullMethod
from raycl.methods.common.weights import WEIGHTS, TrainedParams
from raycl.state.stage_state import StagePart, StageState

SERVING = {"rule", "scale", "trim", "refactor_rank"}
RULES = {"magmax": largest, "ties": elect, "mean": mean}
SCALES = {"magmax": 0.5, "ties": 0.55, "mean": 1.0}
"""The scales of the released code."""


class MergingParams(TrainedParams):
    """What is trained, and how it is merged."""

    name: Literal["merging"] = Field(default="merging", description="a model per stage, merged where it is served")
    base: Literal["sequential", "independent"] = Field(
        default="sequential",
        description="a stage trains on from the last stage's weights (MagMax), or from the backbone",
    )
    rule: Literal["magmax", "ties", "mean"] = Field(default="magmax", description="how task vectors are merged")
    scale: float | None = Field(
        default=None,
        gt=0,
        description="factor on the merged vector; none = the release's: magmax 0.5, ties 0.55, mean 1",
    )
    trim: float = Field(default=0.2, gt=0, le=1, description="TIES: share of a task vector's entries that is kept")
    refactor_rank: PositiveInt | None = Field(
        default=None,
        description="serve the merged vector as a LoRA of this rank; none = exactly, in the weights (and with full)",
    )

    @property
    def factor(self) -> float:
        """The scale, or that of the rule."""
        return SCALES[self.rule] if self.scale is None else self.scale

    def writes_weights(self) -> bool:
        """Unless the merged vector is served as a LoRA; training all weights has a tied weight once."""
        return self.trains == "lora" and self.refactor_rank is None

    def inert(self, stage: int) -> frozenset[str]:
        """Merging has no effect on what a stage trains, nor has `base` at stage 1."""
        return super().inert(stage) | SERVING | ({"base"} if stage == 1 else set())

    def serving(self) -> Json:
        """The merging, without what its rule does not read."""
        acting: Json = {"rule": self.rule, "scale": self.factor}
        if self.rule == "ties":
            acting["trim"] = self.trim
        if self.trains == "lora":
            acting["refactor_rank"] = self.refactor_rank
        return acting


class Merging(LoraOrFullMethod[MergingParams]):
    """Train as SinLoRA or SeqFT, serve the merged weights."""

    Params = MergingParams
    about = About(
        title="a model per stage, merged for serving: MagMax, TIES or mean",
        paper="MagMax, arXiv 2407.06322; TIES, arXiv 2306.01708",
        trains="one LoRA branch (`trains=lora`) or all weights (`trains=full`)",
        growth="one branch, or one copy of all weights, per task; the served model does not grow",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module, as trained",
            "weights": "with trains=full: every weight of the backbone, fp32, in its own shape",
        },
        mergeable=True,
        differences=(
            "MagMax trains all weights of vision models: `method.trains=full`. That serves from all T copies in memory; a "
            "running maximum would need one, but would bind a sequence to one rule.",
            "How SLAO's re-run merges LoRAs is not stated; here products are merged, never factors.",
            "TIES keeps the largest floor(k n) of n entries; the release keeps one more. Where the trimmed values of an "
            "entry cancel exactly, it gets 0 and not the majority's sign.",
            "The merged weights are rounded to the backbone's precision; `method.refactor_rank` serves an fp32 LoRA.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """SinLoRA's: no paper gives settings for language models."""
        return lora_settings(family, order)

    @classmethod
    def carries(cls, params: MergingParams) -> Carries:
        """Merging reads every part's weights."""
        return "all"

    @classmethod
    def in_peft(cls, params: MergingParams) -> InPeft:
        """What is served is merged when it is served: into the weights, or into one adapter of `refactor_rank`."""
        return "weights" if params.trains == "full" or params.refactor_rank is None else "fixed"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Train on from the last weights, or from the backbone."""
        super().install(backbone, state if self.params.base == "sequential" else StageState())

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """theta_0 + scale * tau."""
        own = Own.of(backbone)
        merged = merged_vectors(own, state, self.params)
        if self.params.trains == "full" or self.params.refactor_rank is None:
            values = {name: own.weights[name].float() + own.as_stored(name, vector) for name, vector in merged}
            self.served: FullWeights | Branches = FullWeights(backbone, values, train=False)
            return
        rank = self.params.refactor_rank
        factors = {_path(name): refactor(vector, rank) for name, vector in merged}
        # alpha = rank: the branch is scaled by 1.
        self.served = Branches(backbone, LoraShape(rank, rank, 0.0, self.params.shape.targets), [])
        a = {path: pair[0] for path, pair in factors.items()}
        b = {path: pair[1] for path, pair in factors.items()}
        self.served.start(a, b, self.info.generator("branch"), train="")

    def remove(self) -> None:
        """Take what was trained or served off again."""
        super().remove()
        if hasattr(self, "served"):
            self.served.remove()


@dataclass(frozen=True)
class Own:
    """The backbone's own weights."""

    weights: Mapping[str, Tensor]
    """By name, as they are stored."""
    transposed: frozenset[str]
    """Names of those that are stored as (d_in, d_out)."""

    @classmethod
    def of(cls, backbone: Backbone) -> Own:
        """Those of a backbone."""
        modules = backbone.model.named_modules()
        names = frozenset(f"{path}.weight" for path, module in modules if stored_transposed(module))
        return cls({name: weight.detach() for name, weight in backbone.model.named_parameters()}, names)

    def as_stored(self, name: str, vector: Tensor) -> Tensor:
        """A task vector, (d_out, d_in), in the form in which its weight is stored; and the other way round."""
        return vector.T if name in self.transposed else vector


def merged_vectors(own: Own, state: StageState, params: MergingParams) -> Iterator[tuple[str, Tensor]]:
    """Name by name of what was trained, scale * tau; matrices as (d_out, d_in)."""
    thresholds = [0.0] * len(state.parts)
    if params.rule == "ties":
        # A task vector is trimmed as a whole: small changes of one module may all go, and large ones all stay.
        thresholds = [magnitude(_walk(own, part), params.trim) for part in state.parts]
    for name in _names(state.parts[-1]):
        vectors = [
            trim(task_vector(own, part, name), threshold)
            for part, threshold in zip(state.parts, thresholds, strict=True)
        ]
        yield name, params.factor * RULES[params.rule](vectors)


def task_vector(own: Own, part: StagePart, name: str) -> Tensor:
    """What a part's training added to the weight `name`, (d_out, d_in), in fp32 on the weight's device."""
    weight = own.weights[name]
    if part.branch is None:
        return own.as_stored(name, part.tensors[WEIGHTS + name].to(weight.device) - weight.float())
    branch, path = part.branch, _path(name)
    a, b = branch.a[path].to(weight.device), branch.b[path].to(weight.device)
    return branch.alpha / branch.rank * (b @ a)


def _walk(own: Own, part: StagePart) -> Callable[[], Iterator[Tensor]]:
    """A function that walks through a part's task vector, weight by weight."""
    return lambda: (task_vector(own, part, name) for name in _names(part))


def _names(part: StagePart) -> list[str]:
    """The weights that a part's training changed, by name in the backbone."""
    if part.branch is not None:
        return [f"{path}.weight" for path in part.branch.a]
    return [name.removeprefix(WEIGHTS) for name in part.tensors if name.startswith(WEIGHTS)]


def _path(name: str) -> str:
    """The module whose weight has this name."""
    return name.removesuffix(".weight")
