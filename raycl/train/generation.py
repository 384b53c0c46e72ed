"""What the model writes: the answers to a task's test split with their score, and texts that a method asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from raycl.adapters.backbone import Inputs
from raycl.files import Json
from raycl.methods.common.base import Method, Route, Sampling
from raycl.models.load import LoadedModel
from raycl.tasks.scoring import score
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoded, Encoder, by_length
from raycl.train.decoding import GREEDY
from raycl.train.module import feed, precision
from raycl.train.workers import Workers


@dataclass(frozen=True)
class Scored:
    """One cell of the accuracy matrix with the predictions behind it."""

    score: float
    """0 to 100."""
    further: dict[str, float]
    """The task's further metrics, 0 to 100 each."""
    predictions: list[Json]
    """Per test example, in order: id, prediction, answers, and the route where the method chooses one."""


@dataclass(frozen=True)
class Written:
    """One continuation, and whose weights wrote it where the method decides that input by input."""

    text: str
    route: Route | None = None


@dataclass(frozen=True)
class Decoder:
    """Lets a model continue prompts, with a method on it as it is installed or served; none = the base model alone."""

    model: LoadedModel
    method: Method | None
    encoder: Encoder
    batch_size: int
    workers: Workers

    def score(self, task: Task, earlier: Sequence[Json] = ()) -> Scored:
        """Answer a task's test split, shared out over the workers, and score it by the task's metric.

        Decoding is greedy and stops at the end token, or after the longest label of the task. `earlier` are the predictions
        of a state with fewer tasks: an answer whose route is the same is taken from there.
        """
        encoder, workers = self.encoder, self.workers
        length = encoder.generated(task)
        how = GREEDY | {"eos_token_id": encoder.ends(task.in_chat)}
        mine = encoder.encode(task.test[workers.rank :: workers.world])
        kept = self._kept(mine, earlier[workers.rank :: workers.world])
        fresh = iter(self._continue([one for i, one in enumerate(mine) if i not in kept], length, how))
        shards = workers.gather([kept[i] if i in kept else next(fresh) for i in range(len(mine))])
        written = [Written("")] * len(task.test)
        for rank, shard in enumerate(shards):
            written[rank :: workers.world] = shard
        rows: list[Json] = [
            {"id": example.id, "prediction": one.text, "answers": list(example.answers)}
            | ({} if one.route is None else {"route": asdict(one.route)})
            for example, one in zip(task.test, written, strict=True)
        ]
        texts = [one.text for one in written]
        further = {metric: score(metric, texts, task.test, task.code) for metric in task.metrics}
        return Scored(score(task.metric, texts, task.test, task.code), further, rows)

    @torch.no_grad()
    def _kept(self, encoded: Sequence[Encoded], earlier: Sequence[Json]) -> dict[int, Written]:
        """Earlier answers, by place, of the prompts whose route is what it was. Nothing is generated."""
        if not earlier or self.method is None:
            return {}
        kept = {}
        for batch in by_length(encoded, self.batch_size):
            self.method.condition(
                self.encoder.collate([encoded[i] for i in batch], self.model.backbone.device, answers=False)
            )
            for index, route in zip(batch, self.method.routes() or (), strict=False):
                before = earlier[index].get("route", {})
                if route.alone and (before.get("task"), before.get("known")) == (route.task, route.known):
                    kept[index] = Written(earlier[index]["prediction"], route)
        return kept

    def answer(self, examples: Sequence[Example], tokens: int, chat: bool = False) -> list[Written]:
        """Answers to prompts, at most `tokens` long, as `score` would have them; all in this process.

        In a `chat`, which the examples then are all in, an answer ends with its message.
        """
        how = GREEDY | {"eos_token_id": self.encoder.ends(chat)}
        return self._continue(self.encoder.encode(examples), tokens, how)

    def write(self, prompts: Sequence[str], sampling: Sampling, generator: torch.Generator) -> list[str]:
        """Continuations of raw prompts (a `raycl.methods.common.base.Write`).

        Every worker writes all of them with the same draws, so that what is made up does not depend on their number.
        """
        how = GREEDY | {"repetition_penalty": sampling.repetition_penalty}
        if sampling.top_k:
            how |= {"do_sample": True, "top_k": sampling.top_k, "top_p": 1.0, "temperature": 1.0}
        encoded = [Encoded(tuple(self.model.tokenizer(prompt).input_ids), ()) for prompt in prompts]
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            texts = [one.text for one in self._continue(encoded, sampling.tokens, how)]
        return self.workers.gather(texts)[0]

    @torch.no_grad()
    def _continue(self, encoded: Sequence[Encoded], length: int, how: Json) -> list[Written]:
        """Continuations of the prompts, in order, at most `length` tokens each; `how` goes to `generate`."""
        backbone = self.model.backbone
        written = [Written("")] * len(encoded)
        backbone.model.eval()
        with precision(backbone):
            for batch in by_length(encoded, self.batch_size):
                inputs = self.encoder.collate([encoded[i] for i in batch], backbone.device, answers=False)
                texts = self._batch(inputs, length, how)
                routes = (self.method.routes() if self.method else None) or [None] * len(texts)
                for index, text, route in zip(batch, texts, routes, strict=True):
                    written[index] = Written(text.strip(), route)
        return written

    def _batch(self, inputs: Inputs, length: int, how: Json) -> list[str]:
        """The continuations of one batch."""
        tokenizer, backbone = self.model.tokenizer, self.model.backbone
        if self.method is not None:
            self.method.condition(inputs)
        fed, _, _ = feed(backbone, self.method, inputs)
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": self.encoder.ends(chat=False)}
        out = backbone.model.generate(**fed, max_new_tokens=length, **ends | how)
        # Given embeddings, or an encoder's input, `generate` returns the continuation alone.
        new = out[:, inputs.ids.shape[1] :] if "input_ids" in fed and not backbone.encoder_decoder else out
        return tokenizer.batch_decode(new, skip_special_tokens=True)
