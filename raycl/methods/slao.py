"""SLAO, merge before forget (arXiv 2512.23017): one LoRA of constant size; B is averaged over the tasks, A is replaced.

Per adapted module (W x + s B A x, s = alpha / r) three matrices are carried from stage i - 1: the fine-tuned A_ft (r, d_in)
and B_ft (d_out, r), and the merged B_merge (d_out, r). Stage 1 is plain LoRA. Stage i >= 2 starts from

    A_ft^T = Q R (thin QR),   sigma_j = +1 if R_jj >= 0, else -1,   A_i = (Q diag(sigma))^T,   B_i = B_ft,

so A_i A_i^T = I_r, the rows of A_i span those of A_ft, and an A_ft with orthonormal rows is taken over as it is. The loss is
the cross-entropy. After training

    A_ft = A_i,   B_ft = B_i,   B_merge <- B_merge + lambda(i) (B_ft - B_merge),   lambda(i) = 1 / sqrt(i).

Two adapters exist: the next stage trains on from (A_ft, B_ft), every score is that of (A_ft, B_merge). B_merge averages
matrices that belong to different A's, which is sensible only because A_i stays close to A_(i-1).

The old product is B_ft A_ft = (B_ft R^T) Q^T, so the start of a stage changes the function; B_i = B_ft R^T would keep it
(`preserve_function`, off as in the paper). Rows of A_i have norm 1, not 0.577 as at stage 1: check the learning rate.
The other settings are the paper's ablations: which factors are merged, with which lambda, and where a stage starts.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.files import Json
from raycl.methods.common.base import About, Moments
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.published import is_short, is_t5, lora_settings
from raycl.methods.common.trained import OneLoraMethod
from raycl.state.stage_state import Branch, StagePart, StageState

TUNED_A = "tuned_a/"
"""Prefix of a part's tensors: A as fine-tuned, by module; only where it is not the served A."""
TUNED_B = "tuned_b/"
"""Prefix of a part's tensors: B as fine-tuned, by module."""
INERT_AT_FIRST = {"merges", "merge_schedule", "start_from", "preserve_function"}


class SlaoParams(LoraParams):
    """SLAO's hyper-parameters."""

    name: Literal["slao"] = Field(default="slao", description="one LoRA, orthonormal starts, B merged over the tasks")
    merges: Literal["b", "both"] = Field(
        default="b", description="what is averaged over the tasks: B (the paper), or A and B"
    )
    merge_schedule: Literal["inverse_sqrt", "mean", "none"] = Field(
        default="inverse_sqrt", description="lambda(i): 1/sqrt(i) (the paper), 1/i (a plain mean), or 1 (no merging)"
    )
    start_from: Literal["tuned", "merged", "random"] = Field(
        default="tuned",
        description="where a stage starts: the last fine-tuned factors (the paper), the last merged ones, or a fresh branch",
    )
    preserve_function: bool = Field(
        default=False,
        description="start from B R^T, so that the orthonormal A leaves the function of the last branch alone",
    )

    def inert(self, stage: int) -> frozenset[str]:
        """Nothing is merged or taken over at stage 1; without merging, `merges` has no effect, nor `preserve_function`
        on a fresh branch."""
        unread = {"merges"} if self.merge_schedule == "none" else set()
        unread |= {"preserve_function"} if self.start_from == "random" else set()
        return super().inert(stage) | unread | (INERT_AT_FIRST if stage == 1 else set())


class Slao(OneLoraMethod[SlaoParams]):
    """Start from an orthonormal basis of the last A, merge B into the running average."""

    Params = SlaoParams
    about = About(
        title="one LoRA of constant size: orthonormal starts, B merged over the tasks",
        paper="SLAO, arXiv 2512.23017",
        trains="A and B of one branch",
        growth="none: r (d_in + 2 d_out) per adapted module, whatever T",
        state={
            "branch": "the served adapter: A (r, d_in) as fine-tuned and the merged B (d_out, r) of every adapted module",
            "tuned_b": "(d_out, r): B as fine-tuned, from which the next stage starts",
            "tuned_a": "(r, d_in): A as fine-tuned, from stage 2 on and only with `merges=both`",
        },
        mergeable=True,
        differences=(
            "No official code was found. The paper states neither alpha nor dropout; alpha 16 is re-implementations'.",
            "lambda is never clamped; one re-implementation uses max(lambda, 0.1).",
            "No settings are published for T5: SinLoRA's.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's for Llama-2-7B-chat; SinLoRA's for T5, for which none are published."""
        settings = lora_settings(family, order)
        settings["method"] |= {"rank": 8}
        if not is_t5(family):
            short = is_short(order)
            settings["method"] |= {"alpha": 16.0}
            settings["train"] |= {"lr": 5e-5 if short else 1e-4, "epochs": 5 if short else 1, "batch_size": 8}
        return settings

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Start from the orthonormal basis of the last A and the last B, or fresh."""
        self.last = state.last
        start = StageState()
        if self.last is not None and self.params.start_from != "random":
            start = start.append(StagePart(self.last.task, start_branch(self.last, self.params)))
        super().install(backbone, start)

    def consolidate(self, moments: Moments) -> StagePart:
        """The merged branch to serve, and the fine-tuned factors to go on from."""
        tuned = self.trainee.branch()
        tensors = {TUNED_B + path: b for path, b in tuned.b.items()}
        if self.last is None or self.params.merge_schedule == "none":
            return StagePart(self.info.task, tuned, tensors, self.facts())
        rate, old = merge_rate(self.params.merge_schedule, self.info.stage), self.last.pair
        a, b = tuned.a, {path: merge(old.b[path], tuned.b[path], rate) for path in tuned.b}
        if self.params.merges == "both":
            tensors |= {TUNED_A + path: value for path, value in tuned.a.items()}
            a = {path: merge(old.a[path], tuned.a[path], rate) for path in tuned.a}
        return StagePart(self.info.task, Branch(tuned.rank, tuned.alpha, a, b), tensors, self.facts())

    def measures(self) -> dict[str, float]:
        """lambda of this stage."""
        return {"merge_rate": merge_rate(self.params.merge_schedule, self.info.stage)}


def start_branch(last: StagePart, params: SlaoParams) -> Branch:
    """The branch a stage starts from, unless it starts afresh: A orthonormal, B as it was or turned along with A."""
    branch, merged = last.pair, params.start_from == "merged"
    a, b = {}, {}
    for path in branch.a:
        old_a = branch.a[path] if merged else last.tensors.get(TUNED_A + path, branch.a[path])
        old_b = branch.b[path] if merged else last.tensors[TUNED_B + path]
        a[path], r = orthonormal_rows(old_a)
        b[path] = (old_b.double() @ r.T).float() if params.preserve_function else old_b
    return Branch(branch.rank, branch.alpha, a, b)


def merge_rate(schedule: str, stage: int) -> float:
    """lambda(i), i counted from 1; lambda(1) = 1."""
    return {"inverse_sqrt": stage**-0.5, "mean": 1 / stage, "none": 1.0}[schedule]


def merge(old: Tensor, new: Tensor, rate: float) -> Tensor:
    """old + rate (new - old)."""
    return old + rate * (new - old)


def orthonormal_rows(a: Tensor) -> tuple[Tensor, Tensor]:
    """(Q diag(sigma))^T (r, d_in) in fp32 and diag(sigma) R (r, r) in fp64, with A^T = Q R: A is the product R^T Q^T."""
    q, r = torch.linalg.qr(a.double().T)
    # sign(0) = 0 would erase a row, so 0 counts as positive.
    signs = torch.where(r.diagonal() >= 0, 1.0, -1.0).to(r)
    return (q * signs).T.float().contiguous(), signs[:, None] * r
