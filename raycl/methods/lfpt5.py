"""LFPT5 (arXiv 2110.07298): one soft prompt solves the tasks and writes pseudo-examples of the earlier ones.

Input, in embeddings: [Emb(x); P], with P (n, d), n vectors of the model's width d, behind the text; only P is trained, and
stage t starts from P_(t-1). Before stage t, P_(t-1) is given the cue g_i of every earlier task i and writes continuations;
those of the form "text, marker, answer", with an answer that task i has, and no duplicates, are its pseudo-examples M_i.
With D the task's own examples and M the union of the M_i:

    (1 - lambda_kd) [ CE(D + M) + lambda_lm CE_LM(D + M) ] + lambda_kd s/|D + M| sum_(x in M) KL_x

CE(.) is the mean over examples of the token mean of -log p(y | x). CE_LM is the same for "text, marker, answer" given the
cue of the example's task, so that P can write examples of it later. KL_x is the sum over the answer's tokens of
KL(p under P_(t-1) || p under P), and s (`kl_rows`) says how many rows it is summed over. lambda_kd is 0 in the first stage.
The state is P; examples are dropped after their stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import IGNORE, Backbone
from raycl.adapters.soft_prompts import SoftPrompt, vocabulary_vectors
from raycl.fields import PositiveInt, Weight
from raycl.files import Json
from raycl.methods.common.base import About, Carries, Method, Moments, Penalty, Sampling, Step, Write
from raycl.methods.common.pseudo_text import Layout, Pair, layout_of
from raycl.methods.common.published import is_t5, t5_dropout
from raycl.methods.common.rows import Row
from raycl.methods.common.teacher import as_teacher, divergence
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState
from raycl.tasks.sampling import draw
from raycl.tasks.task import Example

VALUE = "prompt/value"
"""The part's tensor: P, (n, d), fp32."""

LATER = {"lambda_kd", "kl_rows", "share", "attempts", "top_k", "repetition_penalty"}
"""Fields about pseudo-examples."""


class Lfpt5Params(MethodParams):
    """LFPT5's hyper-parameters."""

    name: Literal["lfpt5"] = Field(default="lfpt5", description="one prompt that also writes examples of earlier tasks")
    length: PositiveInt = Field(
        default=300, description="vectors n of the prompt (released code: 300 for classification)"
    )
    lambda_lm: Weight = Field(
        default=0.25, description="weight of writing an example from its task's cue (released code: 0.25)"
    )
    lambda_kd: float = Field(
        default=0.01, ge=0, lt=1, description="weight of the distillation on pseudo-examples (released scripts: 0.01)"
    )
    kl_rows: PositiveInt = Field(
        default=2, description="rows s that the KL is summed over (released code: a micro-batch of 2)"
    )
    share: float = Field(
        default=0.125,
        ge=0,
        le=1,
        description="pseudo-examples per earlier task, as a share of the task's own (released: 2 of 16)",
    )
    attempts: PositiveInt = Field(
        default=64, description="continuations written per earlier task, of which the usable ones count"
    )
    top_k: PositiveInt = Field(default=64, description="tokens to draw among when writing (released code: 64)")
    repetition_penalty: float = Field(
        default=2.5, gt=0, description="penalty on repetition when writing (released code: 2.5)"
    )
    tokens: PositiveInt = Field(
        default=128, description="longest text with marker and answer, in tokens (released code: 128)"
    )
    words: PositiveInt = Field(
        default=80, description="words of a text that are written at most, so that the answer still fits"
    )
    marker: str = Field(default="Answer:", min_length=1, description="what stands between text and answer when writing")
    init_tokens: PositiveInt = Field(default=5000, description="first tokens of the vocabulary that P starts from")

    def soft_tokens(self, stages: int) -> int:
        """The prompt."""
        return self.length

    def inert(self, stage: int) -> frozenset[str]:
        """How P starts has no effect after stage 1; what is about pseudo-examples has none before stage 2."""
        return super().inert(stage) | ({"init_tokens"} if stage > 1 else LATER)


class Vectors(nn.Module):
    """P as a module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


class Lfpt5(Method[Lfpt5Params]):
    """Train one prompt on the task, on pseudo-examples, and on writing both."""

    Params = Lfpt5Params
    version = 2
    about = About(
        title="one soft prompt that solves the tasks and writes pseudo-examples of the earlier ones",
        paper="LFPT5, arXiv 2110.07298",
        trains="the prompt, in every stage",
        growth="none: n d numbers, whatever T; pseudo-examples are written anew before each stage",
        penalised="KL from the previous prompt's answers on pseudo-examples",
        state={"prompt": "value (n, d): the prompt that all tasks share"},
        replays="pseudo",
        differences=(
            "Generation token and answer token are plain text (a cue with the stage's number, `method.marker`); the "
            "release adds tokens to the vocabulary, whose embeddings are random and never trained.",
            "Instruction and answer cue of a prompt are kept as text of the task, and only what differs between examples is "
            "written; the release has bare texts. A text is cut to `method.words`, so that its answer is always written.",
            "P starts from the vocabulary's first `method.init_tokens` tokens; the release draws among the 5000 commonest "
            "of a corpus and puts task name and labels in front.",
            "The prompt stands right behind the text; the release puts it behind the padding.",
            "The KL leaves padding out and its teacher runs without dropout. In the release the two prompts may share their "
            "memory (a prompt loaded on its own device), and the KL is then 0 but for dropout.",
            "AdamW; the release has Adafactor (lr 0.5, fixed), few-shot data and up to 420 epochs. Pseudo-examples are "
            "chosen evenly over labels, without a validation half. Decoding at test is greedy; the release has 4 beams.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released batch and decay; its rate is Adafactor's, and prompts under AdamW take 0.3 (T5) or less."""
        t5 = is_t5(family)
        train: Json = {"lr": 0.3 if t5 else 0.03, "batch_size": 8, "weight_decay": 1e-5}
        return {"model": {"dropout": t5_dropout(family)}, "train": train}

    @classmethod
    def carries(cls, params: Lfpt5Params) -> Carries:
        """The last part holds all that is trained on."""
        return "last"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The last prompt, or one from the vocabulary; the layouts of earlier tasks."""
        if state.last is None:
            count, first = self.params.length, self.params.init_tokens
            value = vocabulary_vectors(backbone, count, self.info.generator("prompt"), first)
        else:
            value = state.last.tensors[VALUE]
        self._put(backbone, value)
        self.previous = self.prompt.value.detach().clone()
        self.earlier = [Layout(**part.facts["layout"]) for part in state.parts]

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """The last prompt."""
        self._put(backbone, state.newest.tensors[VALUE])
        self.prompt.requires_grad_(False)

    def examples(self, own: Sequence[Example], write: Write) -> list[Row]:
        """The task's examples and the pseudo-examples, each to be answered and to be written."""
        self.layout = layout_of(self.info.stage, own)
        most = round(self.params.share * len(own))
        self.kept = [self._pseudo(layout, most, write) for layout in self.earlier] if most else []
        rows = [row for example in own for row in self._rows(example, self.layout, 0)]
        for layout, pairs in zip(self.earlier, self.kept, strict=False):
            for index, pair in enumerate(pairs):
                rows += self._rows(layout.example(f"pseudo {layout.stage} {index}", pair), layout, layout.stage)
        return rows

    def soft_prompt(self) -> SoftPrompt:
        """P behind every input, or P_(t-1) while the teacher runs."""
        value = self.previous if self.teaching else self.prompt.value
        return SoftPrompt(value[None], "end")

    def penalties(self, step: Step) -> dict[str, Penalty]:
        """The KL on the pseudo-examples of the batch. Every worker runs the teacher in every step that any of them does."""
        if self.params.lambda_kd == 0 or not any(self.kept):
            return {}
        stages = step.inputs.stages
        pseudo = torch.zeros(len(step.labels), device=step.labels.device) if stages is None else stages
        chosen = pseudo.nonzero().flatten() if pseudo.any() else torch.zeros(1, dtype=torch.long, device=pseudo.device)
        with self._teacher():
            before = step.run(step.inputs.rows(chosen))
        width = before.shape[1]
        real = (step.labels[chosen, -width:] != IGNORE) & (pseudo[chosen] > 0)[:, None]
        each = divergence(before, step.logits[chosen, -width:])
        total = each.masked_fill(~real, 0.0).sum()
        return {"distillation": Penalty(self._kl_scale() * total / step.rows, self.params.lambda_kd)}

    def consolidate(self, moments: Moments) -> StagePart:
        """The prompt."""
        value = self.prompt.value.detach().to("cpu", copy=True)
        return StagePart(self.info.task, tensors={VALUE: value}, facts=self.facts())

    def remove(self) -> None:
        """The prompt never sat on the backbone."""

    def modules(self) -> dict[str, nn.Module]:
        """The prompt."""
        return {"prompt": self.prompt}

    def measures(self) -> dict[str, float]:
        """Pseudo-examples of each earlier task, and how far the prompt has moved."""
        moved = (self.prompt.value.detach() - self.previous).norm(dim=1).mean()
        kept = {f"pseudo_examples/{index}": float(len(pairs)) for index, pairs in enumerate(self.kept, start=1)}
        return {"prompt_moved": float(moved), **kept}

    def facts(self) -> dict[str, Any]:
        """What later stages need to write examples of this task, and how many were written here."""
        return {"layout": self.layout.record(), "pseudo_examples": [len(pairs) for pairs in self.kept]}

    def _put(self, backbone: Backbone, value: Tensor) -> None:
        self.backbone, self.teaching = backbone, False
        self.prompt = Vectors(value.clone()).to(backbone.device)
        self.kept: list[list[Pair]] = []

    @property
    def _rows_per_example(self) -> int:
        """Without the LM loss nothing is written."""
        return 2 if self.params.lambda_lm > 0 else 1

    def _kl_scale(self) -> float:
        """Turns the mean over rows into s times the mean over examples."""
        return float(self.params.kl_rows * self._rows_per_example)

    def _rows(self, example: Example, layout: Layout, stage: int) -> list[Row]:
        """An example to answer, of its stage, and the same to write, of no stage: the KL is on answers only."""
        whole = 1.0 if self.info.stage == 1 else 1 - self.params.lambda_kd
        weight = whole * self._rows_per_example
        rows = [Row(example, stage, weight, mean=True)]
        if self.params.lambda_lm > 0:
            text = layout.written(example, self.params.marker, self.params.words)
            cue = Example(f"{example.id} written", layout.cue, "", "", (text,))
            rows.append(Row(cue, 0, weight * self.params.lambda_lm, mean=True, tokens=self.params.tokens))
        return rows

    def _pseudo(self, layout: Layout, most: int, write: Write) -> list[Pair]:
        """At most `most` pseudo-examples of an earlier task, evenly over its labels."""
        how = Sampling(self.params.tokens, self.params.top_k, self.params.repetition_penalty)
        texts = write([layout.cue] * self.params.attempts, how, self.info.generator(f"pseudo {layout.stage}"))
        found = [layout.read(text, self.params.marker) for text in texts]
        pairs = list(dict.fromkeys(pair for pair in found if pair is not None))
        seed = f"{self.info.seed}:{self.info.stage}:pseudo {layout.stage}"
        classes = [pair.answer if layout.labels else "" for pair in pairs]
        return [pairs[index] for index in sorted(draw(classes, most, seed))]

    @contextmanager
    def _teacher(self) -> Iterator[None]:
        """The previous prompt in place of the current one, without dropout."""
        self.teaching = True
        try:
            with as_teacher(self.backbone.model):
                yield
        finally:
            self.teaching = False
