"""RouteLoRA (raycl's own): branches trained alone on the bare backbone, behind a classifier in closed form.

    stage t:   y = W x + s B_t A_t x                    the new branch alone, cross-entropy only
    served:    y = W x + sum_{i<=t} a_i s B_i A_i x     a fixed for all layers, tokens and decoding steps of an input

Nothing interferes, so nothing is forgotten; what is left is to know whose input this is. h is one vector per input, from the
bare backbone (`raycl.adapters.base_features`): the mean of its token embeddings, or of its hidden states after a layer. A
Gaussian per task with one covariance (`raycl.adapters.gaussian_router`) gives d_i(h) and p_i(h):

    hard   a_i = 1 for i = argmin d_i, else 0          only that branch is computed
    soft   a = p(h) = softmax(-d(h) / 2T)

A part holds its own task's sums and nothing of other tasks, and is trained without them. The sums over tasks are made
where a state is served: so the served model does not depend on the order of the tasks, and a task is removed, exactly, by
leaving its part out. With `unknown: base`, an input that is unlike every task goes to the base model: its distance to the
likeliest task, by that task's own covariance, is beyond the quantile `unknown_quantile` of the task's training inputs, each
measured as if it had been left out. That takes a (D, D) factor per task, in fp64, while serving; routing alone takes one.

T comes from the tasks' sums too, by leaving out each training input in closed form: no features are kept aside for it.

`families: merge`: where less than `family_below` of two tasks' training inputs, each left out, are told apart, the later
goes on from the branch of the earlier (B alone) and is merged into it (`raycl.adapters.matrix_gain`).
Specification: raycl's own. Routing by base features is in ARIADNE (arXiv 2606.19079) and LoRAuter (arXiv 2601.21795).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.base_features import layer_path, mean_embedding, mean_hidden
from raycl.adapters.chosen import NONE, Groups, choose, grouped
from raycl.adapters.gaussian_router import GaussianRouter, Shrinkage, TaskSums, packed, posterior, scatter_of
from raycl.adapters.moments import Mean, Quantiles, add_rows, mean_name
from raycl.adapters.observe import DownOutputs
from raycl.adapters.routes import Routed, RoutingRule, rule_tensors
from raycl.fields import InKeyUnlessDefault, PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, InPeft, Moments, Observes, Route, When
from raycl.methods.common.family import FAMILY, GAIN, Family, answering, family_of
from raycl.methods.common.feature_sums import DISTANCES, FOURTH, MEAN, SCATTER, closest, nearest, sums_of
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import lora_settings
from raycl.state.stage_state import StagePart, StageState

FEATURE = "feature"
LEVELS = 101
"""Quantiles of the training distances that a part holds: 0 %, 1 %, ..., 100 %."""
SERVING = {"routing", "shrinkage", "temperature", "unknown", "unknown_quantile"}


class RouteLoraParams(LoraParams):
    """The branch's shape, what the router sees, and how it routes."""

    name: Literal["route_lora"] = Field(
        default="route_lora", description="branches trained alone behind a classifier in closed form"
    )
    features: Literal["embeddings", "hidden"] = Field(
        default="embeddings",
        description="what the router sees of an input: the mean of its token embeddings, or of hidden states after `layer`",
    )
    layer: PositiveInt | None = Field(
        default=None, description="layer of the features `hidden`, from 1; none = a third of the depth"
    )
    region: Literal["prompt", "text"] = Field(
        default="prompt",
        description="tokens the features are pooled over: the whole prompt, or the example's text without instruction",
    )
    init: Literal["random", "nearest"] = Field(
        default="random",
        description="start of a branch: fresh, or a copy of that of the earlier task with the nearest mean",
    )
    routing: Literal["hard", "soft"] = Field(
        default="hard", description="one branch per input, or all of them, weighed by their tasks' probabilities"
    )
    shrinkage: Shrinkage = Field(
        default="formula", description="how far the covariance is drawn to a sphere: D / (nu + D), or Ledoit and Wolf's"
    )
    temperature: float | None = Field(
        default=None, gt=0, description="T of soft routing; none = at least 1, by leaving training inputs out"
    )
    families: Annotated[Literal["off", "merge"], InKeyUnlessDefault()] = Field(
        default="off",
        description="`merge`: a task whose inputs are hard to tell from an earlier one's goes on from that branch, merged",
    )
    family_below: Annotated[float, InKeyUnlessDefault()] = Field(
        default=0.9, gt=0.5, le=1, description="two tasks are a family if a smaller share of their inputs is told apart"
    )
    unknown: Literal["nearest", "base"] = Field(
        default="nearest",
        description="who answers an input that is unlike every task: the nearest task, or the base model",
    )
    unknown_quantile: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="share of a task's own inputs that `unknown: base` lets pass, to a percent",
    )

    def inert(self, stage: int) -> frozenset[str]:
        """Routing takes place where a state is served; `layer` is of hidden states, and the first branch has no other."""
        unread = {"layer"} if self.features == "embeddings" else set()
        unread |= {"init", "family_below"} if stage == 1 else set()
        unread |= {"family_below"} if self.families == "off" else set()
        return super().inert(stage) | SERVING | unread

    def serving(self) -> Json:
        """The routing, without what it does not read."""
        acting: Json = {"routing": self.routing, "shrinkage": self.shrinkage, "unknown": self.unknown}
        if self.routing == "soft":
            acting["temperature"] = self.temperature
        if self.unknown == "base":
            acting["unknown_quantile"] = self.unknown_quantile
        return acting


class RouteLora(LoraMethod[RouteLoraParams]):
    """Branches that know nothing of each other, and a router over them."""

    Params = RouteLoraParams
    chooses = True
    about = About(
        title="branches trained alone; a Gaussian classifier in closed form sends each input to its branch",
        paper="raycl's own; the router's parts are linear discriminant analysis and Ledoit-Wolf shrinkage",
        trains="a new branch, alone on the backbone",
        growth="r (d_in + d_out) per adapted module and D (D + 1) / 2 + D + 102 numbers per task, D the width of the "
        "embeddings (0.7 MB at 576, 34 MB at 4096)",
        frozen="the backbone; earlier branches are not even in the model",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            MEAN: "(D,): mean of the features of the task's training inputs",
            SCATTER: "(D (D + 1) / 2,): upper triangle, row by row, of the sum of (h - mean)(h - mean)^T",
            FOURTH: "(1,): sum of |h - mean|^4, which Ledoit-Wolf needs",
            DISTANCES: "(101,): quantiles, by percent, of the training inputs' distances by the task's own covariance, each "
            "measured as if it had been left out",
            "gain": "(r, r) per adapted module, with `families: merge`: sum over the family's tasks of E z z^T, z = A x",
        },
        differences=(
            "Nothing is carried over between tasks: forward transfer is 0 by design. `method.init=nearest` starts a branch "
            "from the nearest earlier one; then a stage depends on those before it.",
            "Instructions give a task away; `method.region=text` shows what the router makes of the texts alone.",
            "The temperature is not calibrated on a tenth of the features, since those of earlier tasks are not kept: the "
            "closed-form margins of left-out training inputs stand for it.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The plain LoRA baselines'."""
        return lora_settings(family, order)

    @classmethod
    def alone(cls, params: RouteLoraParams) -> bool:
        """A branch and its task's sums know of no other task, unless the branch starts from another one's."""
        return params.init == "random" and params.families == "off"

    @classmethod
    def takes(cls, params: RouteLoraParams) -> bool:
        """The task's sums come from its data all the same; a family's branch is merged, so it cannot be another one."""
        return params.families == "off"

    @classmethod
    def passes(cls, params: RouteLoraParams) -> Mapping[When, Observes]:
        """The features' moments, then each input's distance; in a family also what the branch does to the layers."""
        return {"before": "inputs", "after": "layers" if params.families == "merge" else "inputs"}

    @classmethod
    def in_peft(cls, params: RouteLoraParams) -> InPeft:
        """One branch is chosen input by input, or in soft routing all are weighed."""
        return "each" if params.routing == "hard" else "none"

    @property
    def observes(self) -> Observes:
        """The features come from `condition`, of the bare backbone; a family's sums from the adapted layers."""
        return "inputs" if self.downs is None else "layers"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The new branch alone."""
        super().install(backbone, StageState())
        self._start(backbone)
        self.family = Family(self.info.task) if self.params.families == "merge" else None
        self.earlier = state.parts if self.family or self.params.init == "nearest" else ()

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches behind the router."""
        soft = self.params.routing == "soft"
        answers = answering(state.parts)
        self.answers = torch.tensor(answers, device=backbone.device)
        branches = [state.parts[index].pair for index in answers]
        self.serve_branches(backbone, branches if soft else branches[-1:])
        self._start(backbone)
        sums = [sums_of(part, backbone.device) for part in state.parts]
        self.router = GaussianRouter(sums, self.params.shrinkage)
        self.temperature = (self.params.temperature if soft else None) or self.router.temperature()
        self.names = [part.task for part in state.parts]
        if self.params.unknown == "base":
            self.apart = [GaussianRouter([one]) for one in sums]
            level = round(self.params.unknown_quantile * (LEVELS - 1))
            self.limits = torch.stack([part.tensors[DISTANCES][level] for part in state.parts]).to(backbone.device)
        if soft:
            self.branches.mix_by(self._weights)
        else:
            choose(self.branches, branches, self._groups)

    def collect(self, when: When) -> Moments | None:
        """Before training the features' moments; after it, which needs them, how far each input is from the mean."""
        self.watched: Moments | None = {}
        if when == "after":
            self.watched |= {FOURTH: Mean(1, self.backbone.device), DISTANCES: Quantiles(self.backbone.device)}
            if self.family is not None:
                self.downs = DownOutputs(self.branches)
                self.downs.watch(self.watched, GAIN)
        return self.watched

    def initialise(self, moments: Moments) -> None:
        """The task's own sums, and the start of its branch: fresh, at its family's, or at the nearest one's."""
        self.watched = None
        moment, mean = moments[FEATURE], moments[mean_name(FEATURE)].value
        count = int(moment.count)
        self.own = GaussianRouter([TaskSums(mean, count, packed(scatter_of(moment.value, mean, count)))])
        earlier = [sums_of(part, self.backbone.device) for part in self.earlier]
        generator = self.info.generator("branch")
        if earlier and self.params.init == "nearest":
            branch = self.earlier[nearest(earlier, self.own.tasks[0])].pair
            self.branches.start(branch.a, branch.b, generator)
        if earlier and self.family is not None:
            index, self.apart_by = closest(earlier, self.own.tasks[0])
            if self.apart_by < self.params.family_below:
                self.family = family_of(self.earlier, index)
                self.family.start(self.branches, generator)

    def condition(self, inputs: Inputs) -> None:
        """In a data pass and served: take the features, and add them up or route by them. Training needs none."""
        if self.watched is None and self.router is None:
            return
        if self.downs is not None:
            self.downs.inputs = inputs
        with torch.no_grad(), self.branches.off():
            features = self._features(inputs)
        if self.watched is None:
            self._route(features)
        elif DISTANCES in self.watched:
            self._measure(features, self.watched)
        else:
            add_rows(self.watched, FEATURE, features, mean=True)

    def routes(self) -> Sequence[Route] | None:
        """The likeliest task of each input and the one after it; none while training."""
        if self.routed is None:
            return None
        return self.routed.named(self.names, self.params.routing == "hard" and self.params.families == "off")

    def rule(self) -> RoutingRule | None:
        """The classifier over the tasks served."""
        if self.router is None:
            return None
        hidden = self.params.features == "hidden"
        return RoutingRule(
            tuple(self.names),
            tuple(self.answers.tolist()),
            layer_path(self.backbone, self.params.layer) if hidden else None,
            self.params.region == "prompt",
            self.temperature,
            rule_tensors(self.router, self.apart, self.limits if self.apart else None),
        )

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, merged into its family's, and the task's own sums."""
        self.watched = None
        sums = self.own.tasks[0]
        levels = moments[DISTANCES].at(torch.linspace(0, 1, LEVELS, dtype=torch.float64))
        tensors = {MEAN: sums.mean, SCATTER: sums.triangle, FOURTH: moments[FOURTH].total, DISTANCES: levels}
        tensors = {name: value.to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
        branch = self.branch()
        if self.family is not None and self.downs is not None:
            self.downs.release()
            branch, gains = self.family.merge(branch, moments)
            tensors |= gains
        return StagePart(self.info.task, branch, tensors, self.facts())

    def facts(self) -> dict[str, Any]:
        """The number of the task's training inputs, and its family."""
        return {"count": self.own.tasks[0].count} | ({FAMILY: self.family.name} if self.family else {})

    def measures(self) -> dict[str, float]:
        """The share of inputs that is told apart from the task most like this one, where families are looked for."""
        return {} if self.apart_by is None else {"told_apart": self.apart_by}

    def _start(self, backbone: Backbone) -> None:
        """No pass, no router yet."""
        self.backbone = backbone
        self.watched = None
        self.router: GaussianRouter | None = None
        self.family: Family | None = None
        self.downs: DownOutputs | None = None
        """What watches the layers for the family's sums, in the pass after training."""
        self.apart_by: float | None = None
        self.routed: Routed | None = None
        self.apart: list[GaussianRouter] = []

    def _features(self, inputs: Inputs) -> Tensor:
        """h (B, D) of a batch."""
        mask = inputs.prompt_mask if self.params.region == "prompt" else inputs.text_mask
        if self.params.features == "embeddings":
            return mean_embedding(self.backbone, inputs, mask)
        return mean_hidden(self.backbone, inputs, mask, self.params.layer)

    def _measure(self, features: Tensor, moments: Moments) -> None:
        """Add up what can only be seen from the mean: fourth powers, and distances without the input itself."""
        own = self.own
        moments[FOURTH].add((features - own.tasks[0].mean).square().sum(dim=1, keepdim=True).square())
        moments[DISTANCES].add(own.left_out(own.distances(features)[:, 0]))

    def _route(self, features: Tensor) -> None:
        """Who answers each input of the batch."""
        assert self.router is not None
        distances = self.router.distances(features)
        order = distances.argsort(dim=1, stable=True)
        known = self._like_their_task(features, order[:, 0])
        groups = grouped(torch.where(known, self.answers[order[:, 0]], NONE))
        self.routed = Routed(order, posterior(distances, self.temperature), known, groups)

    def _like_their_task(self, features: Tensor, choice: Tensor) -> Tensor:
        """Which inputs are no farther from the task chosen for them than most of its own: (B,)."""
        known = torch.ones_like(choice, dtype=torch.bool)
        for index in choice.unique().tolist() if self.apart else ():
            rows = choice == index
            known[rows] = self.apart[index].distances(features[rows])[:, 0] <= self.limits[index]
        return known

    def _weights(self, layer: nn.Module, old: Tensor | None, new: Tensor) -> Tensor:
        """Soft routing's a (B, 1, T): the same in every layer and for every token; 0 for inputs that no task knows."""
        routed = self._seen()
        return (routed.chances * routed.known[:, None])[:, None, :]

    def _groups(self) -> Groups:
        """Hard routing's choice: the branches that are taken, and by which rows."""
        return self._seen().groups

    def _seen(self) -> Routed:
        """Where the batch goes."""
        if self.routed is None:
            raise RuntimeError("a routed model must be conditioned on its inputs before a forward pass")
        return self.routed
