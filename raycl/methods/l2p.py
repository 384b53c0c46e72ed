"""L2P (Learning to Prompt, arXiv 2112.08654): a pool of small prompts with keys; every input picks the N nearest.

Pool P (M, L, d), keys K (M, d), d = width of the token embeddings Emb(x) (S, d). For an input x:

    q = mean over the prompt's real tokens of Emb(x), (d,), without gradient;  c_m = cos(q, K_m)
    top(x) = the N indices with the largest c_m, largest first
    input embeddings [P_m1; ...; P_mN; Emb(x)],  (N L + S, d)

Loss: CE - lambda mean_x sum_(m in top(x)) cos(q, K_m). The choice itself has no gradient: P learns from the CE of the
inputs that picked it, K from the second term. One pool for all tasks, trained on by every stage; no task id.

With `diversity`, training from stage 2 on picks the N smallest (1 - c_m) (h_m + 1e-6), where h_m is the share of m among
all picks that earlier stages' training rows make by the plain rule: prompts that earlier tasks use are avoided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.backbone import IGNORE, Backbone, Inputs
from raycl.adapters.gates import pool
from raycl.adapters.soft_prompts import SoftPrompt, vocabulary_vectors
from raycl.fields import PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.base import About, Carries, Method, Moments, Observes, Penalty, Step, When
from raycl.methods.common.published import is_t5
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState

PROMPTS, KEYS, PICKED = "pool/prompts", "pool/keys", "pool/picked"
"""The part's tensors: P, K, and (with `diversity`) how often each prompt was picked in all stages so far, (M,)."""


class L2pParams(MethodParams):
    """L2P's hyper-parameters."""

    name: Literal["l2p"] = Field(default="l2p", description="a pool of prompts, of which every input picks some by key")
    pool: PositiveInt = Field(default=10, description="prompts M in the pool (TRACE: 10)")
    length: PositiveInt = Field(default=5, description="vectors L of a prompt (TRACE: 5)")
    picks: PositiveInt = Field(
        default=3, description="prompts N that an input picks (TRACE: 3; the original probably 5)"
    )
    pull: Weight = Field(
        default=0.5, description="lambda: weight of the picked keys' similarity to the input (TRACE: 0.5)"
    )
    train_keys: bool = Field(
        default=True, description="train the keys; TRACE keeps them at the means of the initial prompts"
    )
    key_init: Literal["uniform", "prompt_mean"] = Field(
        default="uniform", description="keys start uniform in (-1, 1), or as the means of their prompts (TRACE)"
    )
    init_scale: float = Field(
        default=1.0, gt=0, description="factor on the vocabulary embeddings prompts start from (TRACE: 0.01)"
    )
    diversity: bool = Field(default=False, description="avoid, in training, prompts that earlier stages picked often")

    @model_validator(mode="after")
    def _enough_prompts(self) -> L2pParams:
        if self.picks > self.pool:
            raise ValueError(f"picks: {self.picks} distinct prompts from a pool of {self.pool}")
        return self

    def soft_tokens(self, stages: int) -> int:
        """The picked prompts."""
        return self.picks * self.length

    def inert(self, stage: int) -> frozenset[str]:
        """How the pool starts has no effect after stage 1; frozen keys feel no pull."""
        start = {"init_scale", "key_init"} if stage > 1 else set()
        return super().inert(stage) | start | (set() if self.train_keys else {"pull"})


class PromptPool(nn.Module):
    """P and K, both fp32."""

    def __init__(self, prompts: Tensor, keys: Tensor, train_keys: bool) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.keys = nn.Parameter(keys, requires_grad=train_keys)

    def similarity(self, query: Tensor) -> Tensor:
        """cos(q, K_m) of queries (B, d): (B, M), in fp32 whatever the autocast."""
        with torch.autocast(query.device.type, enabled=False):
            return F.normalize(query.float(), dim=1) @ F.normalize(self.keys, dim=1).T


@dataclass
class Picks:
    """How often each prompt was picked: a statistic of a data pass."""

    total: Tensor
    """(M,)."""
    count: Tensor
    """Inputs seen, a scalar."""

    def add(self, picked: Tensor) -> None:
        """Count indices (B, N)."""
        self.total += torch.bincount(picked.flatten(), minlength=len(self.total)).to(self.total)
        self.count += len(picked)


class L2p(Method[L2pParams]):
    """Train the pool that all tasks share."""

    Params = L2pParams
    about = About(
        title="a pool of prompts with keys; every input picks its own, without task id",
        paper="L2P, arXiv 2112.08654; for language models TRACE (arXiv 2310.06762)",
        trains="all prompts and keys of the pool, in every stage",
        growth="none: M (L + 1) d numbers, whatever T; inputs are N L positions longer",
        penalised="the distance between an input and the keys it picked",
        state={"pool": "prompts (M, L, d), keys (M, d); with `diversity` picked (M): picks of all stages so far"},
        differences=(
            "The query is the mean of the token embeddings, as in TRACE; the original takes a frozen encoder's output.",
            "The query leaves padding out; TRACE averages over the padded length, so that neighbours in a batch matter.",
            "Keys are trained, as in the original; TRACE computes them once: `method.train_keys=false`, "
            "`method.key_init=prompt_mean`. It also divides the initial prompts by 100: `method.init_scale=0.01`.",
            "`diversity` counts the picks of a pass after training; the original counts while it trains.",
            "No published setting of the learning rate is known for these models; scan 0.03 and 0.3.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """No published rate is known: prompts need a high one, higher where the embeddings are large as in T5."""
        return {"train": {"lr": 0.3 if is_t5(family) else 0.03, "weight_decay": 0.0}}

    @classmethod
    def carries(cls, params: L2pParams) -> Carries:
        """The last part holds all that is trained on."""
        return "last"

    @classmethod
    def passes(cls, params: L2pParams) -> Mapping[When, Observes]:
        """The picks of the training rows, where they count."""
        return {"after": "inputs"} if params.diversity else {}

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The last pool, or a fresh one."""
        if state.last is None:
            prompts = self._fresh_prompts(backbone)
            self._put(backbone, prompts, self._fresh_keys(prompts))
        else:
            self._load(backbone, state.last)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The last pool; picks by the plain rule."""
        self._load(backbone, state.newest)
        self.pool.requires_grad_(False).eval()

    def condition(self, inputs: Inputs) -> None:
        """Pick every input's prompts, from its prompt's embeddings."""
        with torch.no_grad():
            query = pool(self.backbone.embed(inputs.ids), inputs.prompt_mask, "mean_tokens")
        self.similarity = self.pool.similarity(query)
        self.picked = self._pick(self.similarity.detach())
        if self.watched is not None:
            self.watched.add(self.picked)

    def soft_prompt(self) -> SoftPrompt:
        """The picked prompts of every input, nearest first: (B, N L, d)."""
        return SoftPrompt(self.pool.prompts[self.picked].flatten(1, 2))

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """-mean over the global batch of the picked keys' similarity; rows that only fill a batch up are left out."""
        if not self.params.train_keys:
            return {}
        real = (step.labels != IGNORE).any(dim=1)
        pulled = self.similarity.gather(1, self.picked).sum(dim=1)
        return {"pull": Penalty(-(pulled * real).sum() / step.rows, self.params.pull)}

    def collect(self, when: When) -> Moments | None:
        """With `diversity`, the picks of the training rows after training."""
        if when == "before" or not self.params.diversity:
            return None
        self.watched = Picks(torch.zeros_like(self.counts), torch.zeros((), device=self.counts.device))
        return {"picks": self.watched}

    @property
    def observes(self) -> Observes:
        """Picking needs the embeddings only."""
        return "inputs"

    def consolidate(self, moments: Moments) -> StagePart:
        """The pool, and the picks of all stages."""
        tensors = {PROMPTS: self.pool.prompts, KEYS: self.pool.keys}
        if self.params.diversity:
            tensors[PICKED] = self.counts + moments["picks"].total
        self.watched = None
        held = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in tensors.items()}
        return StagePart(self.info.task, tensors=held)

    def remove(self) -> None:
        """The pool never sat on the backbone."""

    def modules(self) -> dict[str, nn.Module]:
        """The pool."""
        return {"pool": self.pool}

    def measures(self) -> dict[str, float]:
        """How similar the picked keys were in the last batch, and how many different prompts it picked."""
        if not hasattr(self, "picked"):
            return {}
        similarity = self.similarity.detach().gather(1, self.picked)
        return {"picked_similarity": float(similarity.mean()), "picked_prompts": float(len(self.picked.unique()))}

    def _put(self, backbone: Backbone, prompts: Tensor, keys: Tensor, counts: Tensor | None = None) -> None:
        self.backbone = backbone
        self.pool = PromptPool(prompts.clone(), keys.clone(), self.params.train_keys).to(backbone.device)
        counts = torch.zeros(len(keys)) if counts is None else counts
        self.counts = counts.to(backbone.device)
        self.watched: Picks | None = None

    def _load(self, backbone: Backbone, part: StagePart) -> None:
        """The pool in a part."""
        self._put(backbone, part.tensors[PROMPTS], part.tensors[KEYS], part.tensors.get(PICKED))

    def _fresh_prompts(self, backbone: Backbone) -> Tensor:
        """M prompts of L vectors, each drawn from the vocabulary."""
        count, length = self.params.pool, self.params.length
        drawn = vocabulary_vectors(backbone, count * length, self.info.generator("prompts"))
        return self.params.init_scale * drawn.view(count, length, -1)

    def _fresh_keys(self, prompts: Tensor) -> Tensor:
        """Uniform in (-1, 1), or the means of the prompts."""
        if self.params.key_init == "prompt_mean":
            return prompts.mean(dim=1)
        drawn = torch.rand(prompts.shape[0], prompts.shape[2], generator=self.info.generator("keys"))
        return drawn * 2 - 1

    def _pick(self, similarity: Tensor) -> Tensor:
        """(B, N): distinct prompts, best first."""
        score = similarity
        if self.params.diversity and self.pool.training and self.counts.any():
            score = (similarity - 1) * (self.counts / self.counts.sum() + 1e-6)
        return score.topk(self.params.picks, dim=1).indices
