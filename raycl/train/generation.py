"""What the model writes: the answers to a task's test split with their score, and texts that a method asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.adapters.predicting import precision
from raycl.files import Json
from raycl.methods.common.answers import Answered
from raycl.methods.common.base import Method, Route, Sampling, one_function
from raycl.models.load import LoadedModel
from raycl.models.reading import Reading, read
from raycl.tasks.scoring import score
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder, by_length, shared_start
from raycl.train.decoding import GREEDY
from raycl.train.greedy import Answer, follow
from raycl.train.module import feed
from raycl.train.workers import Workers

LEAST_SHARED = 8
"""Tokens that prompts must begin with alike before it is worth it to read them once."""


@dataclass(frozen=True)
class Scored:
    """One cell of the accuracy matrix with the predictions behind it."""

    score: float
    """0 to 100."""
    further: dict[str, float]
    """The task's further metrics, 0 to 100 each."""
    predictions: list[Json]
    """Per test example, in order: id, prediction, answers, and the route where the method chooses one."""
    ended: list[bool] = field(default_factory=list)
    """Per test example, whether its answer came to its end token, and not to the limit."""
    doubtful: float | None = None
    """Share of the answers that rounding may turn into others, 0 to 100 (`Written.doubtful`); none = not known."""


@dataclass(frozen=True)
class Written:
    """One continuation, and whose weights wrote it where the method decides that input by input."""

    text: str
    route: Route | None = None
    tokens: int = 0
    """Tokens that were generated, the end token included."""
    ended: bool = True
    """Whether it came to its end token, and not to the limit."""
    doubtful: bool | None = None
    """Whether another batch may choose another token, since two were equally likely but for rounding; none = not known, or
    of no account, in fp32."""


@dataclass(frozen=True)
class Asked:
    """How prompts are to be continued."""

    tokens: int
    """At most so many."""
    ends: Sequence[int]
    """Tokens that end a continuation."""
    how: Json = field(default_factory=lambda: GREEDY)
    """Settings of `generate`."""
    expected: Sequence[Answer] = ()
    """Answers of which one is likely, of a label task: decoding is greedy, and reads most of them at once."""


@dataclass(frozen=True)
class Decoder:
    """Lets a model continue prompts, with a method on it as it is installed or served; none = the base model alone."""

    model: LoadedModel
    method: Method | None
    encoder: Encoder
    batch_size: int
    workers: Workers
    batch_tokens: int | None = None
    """Padded prompt tokens of a batch, in the place of `batch_size`."""

    def score(self, task: Task, earlier: Sequence[Json] = ()) -> Scored:
        """Answer a task's test split, shared out over the workers, and score it by the task's metric.

        Decoding is greedy and stops at the end token, or after the longest label of the task. `earlier` are the predictions
        of a state with fewer tasks: an answer whose route is the same is taken from there.
        """
        written = self._answers(task, task.test, earlier)
        rows: list[Json] = [
            {"id": example.id, "prediction": one.text, "answers": list(example.answers)}
            | ({} if one.route is None else {"route": asdict(one.route)})
            for example, one in zip(task.test, written, strict=True)
        ]
        texts = [one.text for one in written]
        further = {metric: score(metric, texts, task.test, task.code) for metric in task.metrics}
        ended = [one.ended for one in written]
        doubts = [one.doubtful for one in written if one.doubtful is not None]
        share = 100 * sum(doubts) / len(doubts) if doubts else None
        return Scored(score(task.metric, texts, task.test, task.code), further, rows, ended, share)

    def ask(self, task: Task, examples: Sequence[Example]) -> list[Answered]:
        """Answers to examples of a task as `score` would have them, each with its score: `methods.common.answers.Ask`."""
        return [
            Answered(one.text, score(task.metric, [one.text], [example], task.code), one.ended)
            for one, example in zip(self._answers(task, examples), examples, strict=True)
        ]

    def _answers(self, task: Task, examples: Sequence[Example], earlier: Sequence[Json] = ()) -> list[Written]:
        """The answers to a task's examples, shared out over the workers and the same on each; those that `earlier` has are
        taken from there."""
        encoder, workers = self.encoder, self.workers
        expected = encoder.expected(task.closed, task.in_chat)
        asked = Asked(encoder.generated(task), encoder.ends(task.in_chat), expected=expected)
        mine = encoder.encode(examples[workers.rank :: workers.world])
        kept = self._kept(mine, earlier[workers.rank :: workers.world])
        fresh = iter(self._continue([one for i, one in enumerate(mine) if i not in kept], asked))
        shards = workers.gather([kept[i] if i in kept else next(fresh) for i in range(len(mine))])
        written = [Written("")] * len(examples)
        for rank, shard in enumerate(shards):
            written[rank :: workers.world] = shard
        return written

    @torch.no_grad()
    def _kept(self, encoded: Sequence[Encoded], earlier: Sequence[Json]) -> dict[int, Written]:
        """Earlier answers, by place, of the prompts whose route is what it was. Nothing is generated."""
        if not earlier or self.method is None:
            return {}
        kept = {}
        for index, route in self._routed(self.method, encoded):
            before = earlier[index].get("route", {})
            if route.alone and (before.get("task"), before.get("known")) == (route.task, route.known):
                kept[index] = Written(earlier[index]["prediction"], route)
        return kept

    @torch.no_grad()
    def routes(self, examples: Sequence[Example]) -> list[Route]:
        """Whose weights would answer each prompt, in order, with nothing generated; empty if the method does not route."""
        found = dict(self._routed(self.method, self.encoder.encode(examples))) if self.method else {}
        return [found[index] for index in sorted(found)]

    def _routed(self, method: Method, encoded: Sequence[Encoded]) -> Iterator[tuple[int, Route]]:
        """Place and route of each prompt, batch by batch."""
        for batch in self._batches(encoded):
            method.condition(self._collated([encoded[i] for i in batch]))
            yield from zip(batch, method.routes() or (), strict=False)
            self.workers.beat()

    def _batches(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """The places of the prompts that go through the model together."""
        return by_length(encoded, self.batch_size, self.batch_tokens)

    def answer(self, examples: Sequence[Example], tokens: int, chat: bool = False) -> list[Written]:
        """Answers to prompts, at most `tokens` long, as `score` would have them; all in this process.

        In a `chat`, which the examples then are all in, an answer ends with its message.
        """
        return self._continue(self.encoder.encode(examples), Asked(tokens, self.encoder.ends(chat)))

    @torch.no_grad()
    def logits(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """What the model says after every token of each prompt, (S, V), a soft prompt's included; of an encoder-decoder what
        it says first of all, (1, V). One prompt at a time, since a vocabulary is large; fp32 on the CPU."""
        backbone = self.model.backbone
        model: Any = backbone.model.eval()
        for one in self.encoder.encode(examples):
            inputs = self._collated([one])
            if self.method is not None:
                self.method.condition(inputs)
            fed, _, _ = feed(backbone, self.method, inputs)
            if backbone.encoder_decoder:
                start = model.generation_config.decoder_start_token_id
                fed["decoder_input_ids"] = torch.full((1, 1), start, device=backbone.device)
            with precision(backbone):
                found = model(**fed, use_cache=False).logits[0]
            yield found.float().cpu()

    def write(self, prompts: Sequence[str], sampling: Sampling, generator: torch.Generator) -> list[str]:
        """Continuations of raw prompts (a `raycl.methods.common.base.Write`).

        Every worker writes all of them with the same draws, so that what is made up does not depend on their number.
        """
        how = GREEDY | {"repetition_penalty": sampling.repetition_penalty}
        if sampling.top_k:
            how |= {"do_sample": True, "top_k": sampling.top_k, "top_p": 1.0, "temperature": 1.0}
        asked = Asked(sampling.tokens, self.encoder.ends(chat=False), how)
        encoded = [Encoded(tuple(self.model.tokenizer(prompt).input_ids), ()) for prompt in prompts]
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            texts = [one.text for one in self._continue(encoded, asked)]
        return self.workers.gather(texts)[0]

    @torch.no_grad()
    def _continue(self, encoded: Sequence[Encoded], asked: Asked) -> list[Written]:
        """Continuations of the prompts, in order."""
        backbone = self.model.backbone
        written = [Written("")] * len(encoded)
        backbone.model.eval()
        with precision(backbone):
            for places, begin in self._groups(encoded, asked):
                group = [encoded[place] for place in places]
                for batch in self._batches(group):
                    found = self._batch([group[i] for i in batch], begin, asked)
                    routes = (self.method.routes() if self.method else None) or [None] * len(found)
                    for index, one, route in zip(batch, found, routes, strict=True):
                        written[places[index]] = replace(one, route=route)
                    self.workers.beat()
        return written

    def _groups(self, encoded: Sequence[Encoded], asked: Asked) -> Iterator[tuple[Sequence[int], Reading | None]]:
        """Prompts, by place, that go through the model in the same way; and what they all begin with, read once for all."""
        every, readable = range(len(encoded)), asked.expected and self.model.backbone.readable
        if readable and (self.method is None or one_function(self.method)):
            yield every, self._begin(encoded)
        elif readable and self.method is not None and self.method.chooses:
            routes = dict(self._routed(self.method, encoded))
            keys = [(routes[place].task, routes[place].known) if routes[place].alone else None for place in every]
            for key in dict.fromkeys(keys):
                places = [place for place in every if keys[place] == key]
                yield places, self._begin([encoded[place] for place in places]) if key else None
        else:
            yield every, None

    def _begin(self, encoded: Sequence[Encoded]) -> Reading | None:
        """What all prompts begin with, read as the first of them is answered; none where that is little, or no beginning can
        be read alone."""
        backbone = self.model.backbone
        count = shared_start(encoded)
        if count < LEAST_SHARED or len(encoded) < 2 or backbone.encoder_decoder:
            return None
        if self.method is not None:
            self.method.condition(self._collated(encoded[:1]))
        return self._read(self._collated([Encoded(encoded[0].prompt[:count], ())]))[0]

    def _batch(self, rows: Sequence[Encoded], begin: Reading | None, asked: Asked) -> list[Written]:
        """The continuations of one batch, without their routes."""
        backbone = self.model.backbone
        inputs = self._collated(rows)
        if self.method is not None:
            self.method.condition(inputs)
        if not asked.expected or inputs.ids.shape[1] + asked.tokens > backbone.readable:
            return self._generated(inputs, asked)
        if begin is not None:
            inputs = self._collated([replace(one, prompt=one.prompt[begin.tokens :], body=None) for one in rows])
        found = follow(*self._read(inputs, begin), asked.expected, asked.ends, asked.tokens)
        texts = self.model.tokenizer.batch_decode([ids for ids, _ in found], skip_special_tokens=True)
        rounded = backbone.dtype != torch.float32
        return [
            Written(text.strip(), None, len(ids), ids[-1] in asked.ends, doubtful if rounded else None)
            for text, (ids, doubtful) in zip(texts, found, strict=True)
        ]

    def _read(self, inputs: Inputs, begin: Reading | None = None) -> tuple[Reading, Tensor]:
        """Let the model, as the method is conditioned, read prompts, or what stands in them behind what was read before."""
        fed, _, _ = feed(self.model.backbone, self.method, inputs)
        return read(self.model.backbone.model, fed, begin)

    def _collated(self, rows: Sequence[Encoded]) -> Inputs:
        """Prompts as a batch on the model's device."""
        return self.encoder.collate(rows, self.model.backbone.device, answers=False)

    def _generated(self, inputs: Inputs, asked: Asked) -> list[Written]:
        """The continuations of one batch that the method is conditioned on, token by token."""
        tokenizer, backbone = self.model.tokenizer, self.model.backbone
        fed, _, _ = feed(backbone, self.method, inputs)
        how = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": list(asked.ends), **asked.how}
        out = backbone.model.generate(**fed, max_new_tokens=asked.tokens, **how)
        # Given embeddings, or an encoder's input, `generate` returns the continuation alone.
        new = out[:, inputs.ids.shape[1] :] if "input_ids" in fed and not backbone.encoder_decoder else out
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        # A decoder beside an encoder begins with a token that it did not write.
        counts = _counted(new[:, 1:] if backbone.encoder_decoder else new, asked.ends)
        return [Written(text.strip(), None, *count) for text, count in zip(texts, counts, strict=True)]


def _counted(ids: Tensor, ends: Sequence[int]) -> list[tuple[int, bool]]:
    """Of each row (B, S) of what was generated: its tokens up to the first of `ends`, and whether there is one."""
    found = []
    for row in ids.tolist():
        end = next((place for place, one in enumerate(row) if one in ends), None)
        found.append((len(row), False) if end is None else (end + 1, True))
    return found
