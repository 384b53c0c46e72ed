"""SAPT-LoRA (arXiv 2401.08295): a shared attention over the branches, kept in place by replayed inputs of earlier tasks.

For an input with token embeddings E (n, d) of its prompt, once for all layers, tokens and decoding steps:

    p = max over the n tokens of E                           in R^d
    q = LayerNorm(SiLU(Q_2 Q_1 p))                           shared query net, Q_1 (h, d), Q_2 (d, h), h = 100
    a = softmax(K q / sqrt(d))                               K (t, d): one key per task; a in R^t sums to 1
    y = W x + s sum_{i<=t} a_i B_i A_i x                     A_i (r, d_in), B_i (d_out, r), s = alpha / r

    loss = CE(new task) + lambda sum_{j<t} mean_{x of task j} KL( (abar_j, 0, ..., 0) || a(x) )

A_i, B_i and the keys of earlier tasks are frozen; A_t, B_t, the new key and the query net train (at stage 1 there is one
key, a = 1 whatever the net does, and only the branch trains). abar_j in R^j is the mean attention of task j right after its
own stage, padded with zeros for the tasks since: so the net, which moves on, still routes old inputs as it did. The
cross-entropy is that of the new task alone, as in the released code; `replay_weight` adds replayed rows to it.

Replayed inputs mix into the batches as rows of their own. With N rows in all and n_j of task j, a batch of size M counts
lambda (1/M) sum_{replayed x} (N / n_j) KL: its mean over batches is the term above, whatever the number of workers.
A new softmax entry takes weight from the old ones: a stage does not start from the function the one before ended with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.gates import pool
from raycl.adapters.moments import Mean
from raycl.adapters.routing import Router, fresh_key, fresh_query
from raycl.fields import PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.base import About, InPeft, Moments, Observes, Penalty, Step, When, Write
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.memory import budget, keep, records, remembered
from raycl.methods.common.published import is_short, is_t5, t5_dropout
from raycl.methods.common.rows import Row, own_rows
from raycl.state.stage_state import StagePart, StageState
from raycl.tasks.stored import Joined
from raycl.tasks.task import Example

QUERY, KEY, ATTENTION = "query/", "key", "attention"


class SaptLoraParams(LoraParams):
    """SAPT-LoRA's hyper-parameters."""

    name: Literal["sapt_lora"] = Field(
        default="sapt_lora", description="a shared attention over branches, held by replayed inputs"
    )
    query_hidden: PositiveInt = Field(default=100, description="hidden width h of the query net (released code: 100)")
    kl_weight: Weight = Field(
        default=0.5,
        description="lambda, weight of the attention's KL; SAPT: 0.1, 0.5 (T5), 1, 2 (Llama), see the settings",
    )
    share: float = Field(
        default=0.02, gt=0, le=1, description="share of a task's examples that is kept for replay (SAPT: 0.02)"
    )
    replay_weight: Weight = Field(
        default=0.0,
        description="weight of replayed rows in the cross-entropy; 0 = the attention's KL only, as the released code",
    )

    def inert(self, stage: int) -> frozenset[str]:
        """Nothing is replayed at stage 1."""
        return super().inert(stage) | ({"kl_weight", "replay_weight"} if stage == 1 else set())


class SaptLora(LoraMethod[SaptLoraParams]):
    """Branches under one shared attention."""

    Params = SaptLoraParams
    about = About(
        title="one attention over all branches from a shared query net, held by replayed inputs",
        paper="SAPT-LoRA, arXiv 2401.08295",
        trains="A and B of a new branch; from stage 2 also its key and the shared query net",
        growth="r (d_in + d_out) per adapted module, d for the key and `share` of the examples, as text, per task; every "
        "part holds the query net as it was, 2 h d + 2 d, of which the last one counts",
        frozen="the backbone, all earlier branches and keys",
        penalised="KL between each earlier task's stored mean attention and that on its replayed inputs",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "query": "down (h, d), up (d, h), norm weight and bias (d): the query net after the stage",
            "key": "(1, d): the task's key",
            "attention": "(t,): mean attention of the task's training inputs after its stage, oldest task first",
        },
        replays="real",
        differences=(
            "Replayed inputs are real examples of the training set. SAPT trains a generator LoRA per task (rank 8, lr 1e-3, "
            "5000 steps) and replays what it writes; a second training run per stage is not offered here.",
            "The released code takes a batch of every earlier task in every step for the KL. Here replayed rows are part of "
            "the batches, weighted so that the expected term is the same; they count as tokens in the mean of the "
            "cross-entropy, with weight `method.replay_weight`.",
            "The mean attention of a task is taken on its training inputs; the released code takes it while predicting.",
            "Prompts are pooled over real tokens; the release pools over padding too.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released scripts for T5-Large and Llama-2; SuperNI orders and the others differ in rank, epochs and lambda."""
        t5, short = is_t5(family), is_short(order)
        kl_weight = (0.5 if short else 0.1) if t5 else (1.0 if short else 2.0)
        epochs = (100 if short else 10) if t5 else (50 if short else 20)
        rank = 8 if t5 and not short else 4
        return {
            "model": {"dropout": t5_dropout(family)},
            "method": {"rank": rank, "alpha": 32.0, "dropout": 0.0, "kl_weight": kl_weight},
            "train": {"lr": 3e-4 if t5 else 5e-5, "epochs": epochs, "batch_size": 32, "weight_decay": 0.0},
        }

    @classmethod
    def in_peft(cls, params: SaptLoraParams) -> InPeft:
        """Branches are weighed input by input."""
        return "none"

    @classmethod
    def passes(cls, params: SaptLoraParams) -> Mapping[When, Observes]:
        """The attention of the task's own inputs."""
        return {"after": "inputs"}

    def install(self, backbone: Backbone, state: StageState) -> None:
        """All branches under the attention, with a new key; open the memory."""
        super().install(backbone, state)
        generator = self.info.generator("routing")
        last = state.last
        fresh = fresh_query(backbone.width, self.params.query_hidden, generator)
        query = _query(last) if last else fresh
        self._route(backbone, state.parts, query, fresh_key(backbone.width, generator), train=last is not None)
        self.memory = remembered(state, self.params.replay_weight)
        padded = [F.pad(p.tensors[ATTENTION], (0, state.stage + 1 - len(p.tensors[ATTENTION]))) for p in state.parts]
        self.targets = torch.stack(padded).to(backbone.device) if padded else None

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches under the last stage's attention."""
        super().serve(backbone, state)
        last = state.parts[-1]
        self._route(backbone, state.parts[:-1], _query(last), last.tensors[KEY], train=False)

    def examples(self, own: Sequence[Example], write: Write) -> Sequence[Row]:
        """The task's own examples and the memory."""
        self.kept = keep(own, budget(own, self.params.share), self.info)
        rows = Joined(own_rows(own), self.memory)
        counts = Counter(row.stage for row in self.memory)
        self.scales = torch.tensor([len(rows) / counts[stage] for stage in sorted(counts)])
        return rows

    def collect(self, when: When) -> Moments | None:
        """After training, the mean attention of the task's own inputs."""
        if when == "before":
            return None
        self.mean = Mean(self.branches.count, self.backbone.device)
        return {ATTENTION: self.mean}

    @property
    def observes(self) -> Observes:
        """The attention needs the embeddings only."""
        return "inputs"

    def condition(self, inputs: Inputs) -> None:
        """Compute the attention once, from the prompt; all layers and decoding steps use it."""
        pooled = pool(self.backbone.embed(inputs.ids), inputs.prompt_mask, "max")
        self.log_weights = log_weights = self.router(pooled)
        if self.mean is not None:
            own = slice(None) if inputs.stages is None else inputs.stages == 0
            self.mean.add(log_weights[own].exp())

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """KL(stored mean attention || attention) on the replayed rows of the batch."""
        if self.targets is None or self.params.kl_weight == 0:
            return {}
        stages, log_weights = step.inputs.stages, self._routed()
        value = log_weights.new_zeros(())
        if stages is not None:
            value = drift(log_weights, self.targets, stages, self.scales.to(stages.device))
        return {"attention": Penalty(value, self.params.kl_weight)}

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, the query net, the key, the mean attention and the task's share of the memory."""
        self.mean = None
        tensors = {f"{QUERY}{name}": value for name, value in self.router.query().items()}
        tensors[KEY] = self.router.key.detach().to("cpu", torch.float32, copy=True).contiguous()
        tensors[ATTENTION] = moments[ATTENTION].value.float().cpu()
        return StagePart(self.info.task, self.branch(), tensors, self.facts())

    def modules(self) -> dict[str, nn.Module]:
        """Query net and keys."""
        return {"router": self.router}

    def measures(self) -> dict[str, float]:
        """Mean attention of each branch over the last batch."""
        if self.log_weights is None:
            return {}
        means = self.log_weights.detach().exp().mean(dim=0).tolist()
        return {f"attention/{index}": mean for index, mean in enumerate(means, start=1)}

    def facts(self) -> dict[str, Any]:
        """The examples that later stages replay."""
        return {"memory": records(self.kept)}

    def _route(
        self, backbone: Backbone, earlier: Sequence[StagePart], query: dict[str, Tensor], key: Tensor, train: bool
    ) -> None:
        """Put an attention with the keys of the earlier parts and the newest one in charge of the branches."""
        self.backbone = backbone
        self.log_weights: Tensor | None = None
        """(B, T): the attention on the batch at hand, as logarithms, oldest branch first."""
        self.mean: Mean | None = None
        old = torch.cat([part.tensors[KEY] for part in earlier]) if earlier else None
        self.router = Router(query, old, key, train).to(backbone.device)
        self.branches.mix_by(self._weights)

    def _weights(self, layer: nn.Module, old: Tensor | None, new: Tensor) -> Tensor:
        """The attention (B, 1, T): the same in every layer and for every token."""
        return self._routed().exp()[:, None, :]

    def _routed(self) -> Tensor:
        """log a (B, T) of the batch at hand."""
        if self.log_weights is None:
            raise RuntimeError("a routed model must be conditioned on its inputs before a forward pass")
        return self.log_weights


def drift(log_weights: Tensor, targets: Tensor, stages: Tensor, scales: Tensor) -> Tensor:
    """(1/B) sum over rows of earlier tasks of scale_j KL(target_j || a).

    log a (B, t); targets (t-1, t) by task; stages (B,), 0 = the new task, which counts nothing; scales (t-1,) by task.
    """
    old = stages > 0
    index = stages[old] - 1
    each = F.kl_div(log_weights[old], targets[index], reduction="none").sum(dim=1)
    return (each * scales[index]).sum() / len(stages)


def _query(part: StagePart) -> dict[str, Tensor]:
    """The query net that a part holds."""
    return {name.removeprefix(QUERY): value for name, value in part.tensors.items() if name.startswith(QUERY)}
