"""SDFT (arXiv 2601.19897), demonstration-conditioned self-distillation: a model learns what it says when shown the answer.

One LoRA branch trains on every task in turn. The teacher is the same model, and reads more: with x a row's prompt, and
d = (x, y*), the prompt and its answer from the data, as a demonstration,

    L = c CE(y*)  +  w / N * sum over rows and answer tokens i of  KL( p(. | x, y_<i) || p_teacher(. | d, x, y_<i) )

over the whole vocabulary at every token, N the answer tokens of the data in the global batch. The direction above is the
paper's; `kl: forward` has the teacher first. c = `cross_entropy`, 0 in the paper; w = `weight`.

Which y: with `samples: student`, as in the paper, an answer drawn from the student given x alone, at temperature 1 and
without dropout, anew in every step; no gradient passes through the draw. It stands in the places of y*: it ends where the
end token is drawn, and at the latest where y* ends or after `max_tokens` tokens. With `samples: data`, y = y*. There the
teacher has just read the very tokens that it predicts and can copy them: as far as it does, the loss is a cross-entropy
softened by what the model finds likely beside.

The teacher's weights theta' start at the stage's own start and follow the student's theta after every step,

    theta' <- theta' + alpha (theta - theta'),      alpha = `teacher_rate`, 0: as at the start, 1: the student itself

for A and B each. No gradient reaches the teacher, and it has no dropout.

Passes of a micro-batch beside the plain one, forward only but for the second: one over about twice as many tokens by the
teacher; with `samples: student` one over y by the student, and one for each token drawn (no keys and values are kept).
How many tokens are drawn is agreed on by all workers, so that all take
the same passes, at every ZeRO stage.

What is drawn hangs on the run's seed, the stage, the step and the row's prompt, by one uniform number for each token:
neither the number of workers nor micro-batches nor padding change it, but where by rounding a number falls on the other
side of the edge between two tokens. Rows with the same prompt in one step draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Backbone
from raycl.fields import PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.base import About, Penalty, Step
from raycl.methods.common.demonstrations import at_answers, drawn, labelled, shown
from raycl.methods.common.lora import LoraParams
from raycl.methods.common.published import lora_settings
from raycl.methods.common.teacher import as_teacher, divergence, holding, summed
from raycl.methods.common.trained import OneLoraMethod
from raycl.spec import Beside
from raycl.state.stage_state import StageState


class SelfDistillParams(LoraParams):
    """The branch's shape, the terms of the loss, and who teaches what on which answers."""

    name: Literal["self_distill"] = Field(
        default="self_distill", description="one LoRA, taught by the model itself with the answer shown in its context"
    )
    weight: Weight = Field(default=1.0, description="w, weight of the divergence from the teacher")
    cross_entropy: Weight = Field(
        default=1.0, description="c, weight of the cross-entropy on the data's answers; 0 in the paper"
    )
    samples: Literal["student", "data"] = Field(
        default="student",
        description="the answers on which teacher and student are compared: the student's, or the data's",
    )
    max_tokens: PositiveInt = Field(
        default=16, description="tokens of an answer that the student writes at most; each is one more forward pass"
    )
    kl: Literal["reverse", "forward"] = Field(
        default="reverse", description="KL(student || teacher), or forward, KL(teacher || student)"
    )
    teacher_rate: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="alpha, by which share the teacher's weights move to the student's at every step; 0 = they stay as "
        "at the stage's start, 1 = they are the student's",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> SelfDistillParams:
        if self.weight == 0 and self.cross_entropy == 0:
            raise ValueError("weight: 0 with cross_entropy 0 leaves no loss; set one of them above 0")
        return self

    def inert(self, stage: int) -> frozenset[str]:
        """Without its weight nothing of the divergence acts; only the student's answers are drawn."""
        if self.weight == 0:
            return super().inert(stage) | {"samples", "max_tokens", "kl", "teacher_rate"}
        return super().inert(stage) | ({"max_tokens"} if self.samples == "data" else set())

    def shows_answers(self) -> bool:
        """The teacher reads a demonstration."""
        return self.weight > 0

    def beside(self, stage: int, answer: int) -> Beside:
        """The teacher's pass, about twice as long; over answers that are drawn, one for each token, and the student's."""
        if self.weight == 0:
            return Beside()
        if self.samples == "data":
            return Beside(read=(2.0,))
        return Beside(read=(*[1.0] * min(answer, self.max_tokens), 2.0), trained=(1.0,))


class SelfDistill(OneLoraMethod[SelfDistillParams]):
    """SinLoRA with a teacher that is the model itself, shown the answer."""

    Params = SelfDistillParams
    about = About(
        title="one LoRA trained in turn, taught by the model itself with the answer shown in its context",
        paper="SDFT, arXiv 2601.19897",
        trains="A and B of one branch",
        growth="none: r (d_in + d_out) per adapted module, whatever T",
        penalised="KL between the model that reads the prompt and the model that reads prompt and answer as a demonstration "
        "before it, over answers that the former draws (`samples=student`) or the data's (`data`)",
        state={"branch": "A (r, d_in) and B (d_out, r) of every adapted module"},
        mergeable=True,
        differences=(
            "The paper has no cross-entropy; here it counts in full by default, since a model teaches only what it takes up "
            "from its context, which small ones may not. `method.cross_entropy=0` leaves it out; the logged loss is the "
            "cross-entropy all the same.",
            "The paper trains all weights, here one LoRA branch; the teacher's moving average is that of A and of B.",
            "The paper's teacher is told that it sees an example and is to answer in its own way. Here the demonstration is "
            "prompt and answer, end token included, before the prompt, in the task's own template.",
            "An answer that is drawn has at most as many tokens as the row's own (and `method.max_tokens`), so that padding "
            "and passes stay those of the data; the paper's are free. A sum over its tokens is divided by the tokens of the "
            "data's answers.",
            "With `method.samples=data` the teacher can copy the answer that it has read: a softened cross-entropy.",
            "Of the paper the abstract was read, and accounts of its algorithm, which do not agree on the teacher: a "
            "moving average with a rate of 0.01 to 0.05, or the model as it was (`method.teacher_rate=0`). Settings are "
            "O-LoRA's conventions for a branch.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """As SinLoRA."""
        return lora_settings(family, order)

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Continue the last branch, from which the teacher's weights start."""
        super().install(backbone, state)
        self.teacher: dict[str, Tensor] = {}
        """The teacher's A and B by name; none where they are the student's."""
        if self.params.weight > 0 and self.params.teacher_rate < 1:
            self.teacher = {name: weight.detach().clone() for name, weight in self.trainee.parameters().items()}
        self.progress: float | None = None

    def running(self) -> Mapping[str, Tensor]:
        """The teacher's weights."""
        return self.teacher

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The divergence, and what makes the loop's cross-entropy count c times."""
        terms = {}
        if self.params.cross_entropy != 1:
            terms["cross_entropy"] = Penalty(step.loss, self.params.cross_entropy - 1)
        if self.params.weight > 0:
            self._follow(step.progress)
            terms["distillation"] = Penalty(self._divergence(step) / step.tokens, self.params.weight)
        return terms

    def _follow(self, progress: float) -> None:
        """Move the teacher's weights, once in every step, before the first of its passes: at the first step not at all,
        since there the student's are the same."""
        if progress != self.progress:
            self.progress = progress
            weights = self.trainee.parameters()
            for name, value in self.teacher.items():
                value.lerp_(weights[name].detach(), self.params.teacher_rate)

    def _divergence(self, step: Step) -> Tensor:
        """The sum over answer tokens."""
        branches, inputs = self.trainee.branches, step.inputs
        backbone = branches.backbone
        answers, counted, student = inputs, labelled(inputs) != IGNORE, step.logits
        if self.params.samples == "student":
            with as_teacher(backbone.model):
                answers, counted = drawn(inputs, step.run, self._chances(step), backbone.encoder_decoder)
            student = step.run(answers)
        with as_teacher(backbone.model), holding(self.trainee.parameters(), self.teacher):
            teacher = step.run(shown(inputs, answers, backbone.encoder_decoder))
        pair = at_answers(student, counted), at_answers(teacher, counted)
        each = divergence(*(pair if self.params.kl == "reverse" else reversed(pair)))
        return summed(each, counted, inputs.weights)

    def _chances(self, step: Step) -> Tensor:
        """One number in [0, 1) for each row and token to draw, (B, n), n the same on all workers."""
        inputs, tokens = step.inputs, self._tokens(step)
        rows = zip(inputs.ids.tolist(), inputs.prompt_mask.tolist(), strict=True)
        drawn_by_row = []
        for ids, mask in rows:
            prompt = [token for token, real in zip(ids, mask, strict=True) if real]
            generator = self.info.generator(f"answer {step.progress} {prompt}")
            drawn_by_row.append(torch.rand(tokens, generator=generator, dtype=torch.float64))
        return torch.stack(drawn_by_row).to(inputs.ids.device)

    def _tokens(self, step: Step) -> int:
        """Tokens to draw: of the longest answer in this micro-batch of any worker, `max_tokens` at most."""
        longest = (labelled(step.inputs) != IGNORE).sum(dim=1).max().clamp(max=self.params.max_tokens)
        lengths = torch.arange(self.params.max_tokens + 1, device=longest.device)
        workers = (lengths == longest).float()
        step.sum([workers])
        return int((lengths * (workers > 0)).max())
