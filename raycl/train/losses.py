"""Two options of a stage's loss that any method can have, in the token mean over a global batch; y_t are the answer tokens.

EAFT, entropy-adaptive fine-tuning (`train.loss: eaft`; arXiv 2601.02151): with p_t the model's own next-token distribution,

    -H_t log p_t(y_t),    H_t = -(1 / ln K) sum over the K likeliest tokens of q_t ln q_t,    q_t = p_t renormalised on them

H_t, 0 to 1, has no gradient. A token of low probability where the model is sure (H_t near 0) pulls little: to follow it
would overwrite what the model knows. K = 20 (`train.loss_top_k`); the release divides by 3, ln 20 being 2.996.

TMKL, mask the target (`train.base_kl`: its weight; arXiv 2605.29498): beside the cross-entropy

    lambda KL( p0_t without y_t || p_t without y_t )

where p0_t is the base model's distribution on the same input, adapters and soft prompts off, and "without" takes the token
out and renormalises the others: what the base model thinks of them is kept, and the cross-entropy is not opposed.
The abstract, which is what was read, says neither which way round the KL is nor what lambda is; here the base model is the
target, as in distillation, and lambda has no default. Rows count as in the cross-entropy: replayed ones with their weight.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE
from raycl.methods.common.base import Penalty, Step
from raycl.methods.common.teacher import divergence, summed, widened, without
from raycl.sections import TrainSpec
from raycl.train.module import Gate


def gate_of(settings: TrainSpec) -> Gate | None:
    """The weight of answer tokens that the settings ask for; none = all count 1."""
    return partial(normalised_entropy, top_k=settings.loss_top_k) if settings.loss == "eaft" else None


@torch.no_grad()
def normalised_entropy(logits: Tensor, top_k: int) -> Tensor:
    """H of each position: logits (..., V) -> (...), 0 to 1, in fp32 at least, no gradient; of a smaller vocabulary K = V."""
    likeliest = widened(logits).topk(min(top_k, logits.shape[-1]), dim=-1).values
    return torch.special.entr(likeliest.softmax(dim=-1)).sum(dim=-1) / math.log(likeliest.shape[-1])


def base_term(step: Step, base: Tensor, weight: float) -> dict[str, Penalty]:
    """TMKL as a loss term; `base` are the base model's logits (B, L, V) in the place of the step's."""
    answers = step.labels != IGNORE
    targets = step.labels[answers]
    each = divergence(without(targets, base[answers]), without(targets, step.logits[answers]))
    return {"base_kl": Penalty(summed(each, answers, step.inputs.weights) / step.tokens, weight)}
