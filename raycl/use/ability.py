"""What learning a sequence does to the model beside its tasks: plain text and instructions, after every stage of a run.

Perplexity is exp of the mean -log p(token | the tokens before it) over all tokens of plain texts but the first of each,
with the served state in place: gates, routes and prompts look at the text as they would at an input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycl.analysis.ability import Ability
from raycl.errors import SpecError
from raycl.models.load import LoadedModel
from raycl.sections import DataSpec
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Example
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from raycl.use.heads import Head
from raycl.use.instructions import INSTRUCTIONS, TOKENS, share_followed
from raycl.use.prompts import encoder_of
from raycl.use.served import BATCH, Served, load_base

BASE = "the base model"
LONGEST = 256
"""Tokens of a text or an instruction, with what a chat template writes around it; longer texts are cut."""
PLAIN = "plots"
"""The demo's task whose texts of the label `plot`, summaries of films, are the plain text by default."""


def abilities(
    head: Head, texts: Sequence[str] | None = None, model: str | None = None, device: str | None = None
) -> Iterator[Ability]:
    """The base model's abilities, then those after each stage of a run, one at a time.

    `texts` none = summaries of films that come with the demo; `model` and `device` as in `raycl.load`. Where the method must
    be told whose inputs come, the newest task's are said. Raises UserError as `raycl.load`, and SpecError for texts of which
    none has two tokens.
    """
    loaded = load_base(head, model, device)
    head = _wide(head)
    encoder = encoder_of(head, loaded.tokenizer, loaded.backbone.encoder_decoder)
    given = plain_texts() if texts is None else texts
    kept = [one for one in map(_whole, given) if len(encoder.encode([one])[0].prompt) > 1]
    if not kept:
        raise SpecError("texts: none of them has two tokens; next step: give longer ones, a text per line")
    measure = Measure(
        loaded, encoder, kept, not (encoder.encoder_decoder or head.spec.method.soft_tokens(len(head.stages)))
    )
    bare = Decoder(loaded, None, encoder, BATCH, Workers(device=str(loaded.backbone.device)))
    yield Ability(0, BASE, *measure.of(bare))
    for stage, task in enumerate(_tasks(head), start=1):
        with Served(head.after(stage), loaded, task if head.needs_task else None) as served:
            yield Ability(stage, task, *measure.of(served.decoder(BATCH)))


@dataclass(frozen=True)
class Measure:
    """Texts and instructions for one model."""

    loaded: LoadedModel
    encoder: Encoder
    texts: Sequence[Example]
    reads: bool
    """Whether the model gives plain text a probability."""

    def of(self, decoder: Decoder) -> tuple[float | None, float]:
        """Perplexity and share of instructions followed of what a decoder answers with."""
        told = () if getattr(self.loaded.tokenizer, "chat_template", None) else None
        asked = [replace(_whole(one.text), chat=told) for one in INSTRUCTIONS]
        answers = [one.text for one in decoder.answer(asked, TOKENS, told is not None)]
        ids = (one.prompt for one in self.encoder.encode(self.texts))
        return perplexity(decoder.logits(self.texts), ids) if self.reads else None, share_followed(answers)


def _wide(head: Head) -> Head:
    """The same state with limits of the probe's own: whatever a run's tasks are cut at, an instruction is read whole."""
    data = head.spec.data.model_copy(update={"max_source_tokens": LONGEST, "max_target_tokens": TOKENS})
    return replace(head, spec=head.spec.model_copy(update={"data": data}))


def plain_texts() -> list[str]:
    """The default plain texts. Raises SetupError if the package that they come in is missing."""
    (task,) = load_tasks([PLAIN], DataSpec(source="demo"))
    return [example.body for example in task.test if example.answers[0] == "plot"]


def perplexity(logits: Iterable[Tensor], ids: Iterable[Sequence[int]]) -> float:
    """exp of the mean -log p of each token but the first; of each text the `logits` (S, V) after every one of `ids` (S)."""
    total = count = 0.0
    for said, tokens in zip(logits, ids, strict=True):
        ahead = torch.tensor(tokens[1:])
        logs = torch.log_softmax(said[:-1].double(), dim=-1)
        total -= float(logs.gather(1, ahead[:, None]).sum())
        count += len(ahead)
    return math.exp(total / count)


def _tasks(head: Head) -> list[str]:
    """What each stage learned; a joint method's one stage all of them."""
    return head.spec.tasks if len(head.stages) > 1 else ["+".join(head.spec.tasks)]


def _whole(text: str) -> Example:
    return Example("", "", text, "", ("",))
