"""From examples to batches: tokenise once, cut only the body of a prompt, pad, and put prompts of like length together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from raycl.adapters.backbone import Inputs
from raycl.adapters.token_rows import TokenRows, batch_of
from raycl.methods.common.rows import Row
from raycl.tasks.stored import keep
from raycl.tasks.task import Example, Task
from raycl.train.chat import around, message_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Target with the end-of-sequence token."""
    stage: int = 0
    """1-based stage of the task the row stands for; 0 = the current one."""
    weight: float = 1.0
    """Weight of the row's answer tokens in the cross-entropy."""
    mean: bool = False
    """Whether the row counts as one token: its weight is then that of its mean."""
    body: tuple[int, int] | None = None
    """Where in the prompt the example's body stands: its first token, and the one after its last; none = not known."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def counts(self) -> int:
        """Tokens that the row stands for in the mean over a global batch."""
        return min(1, len(self.answer)) if self.mean else len(self.answer)

    @property
    def token_weight(self) -> float:
        """Weight of each answer token in the summed cross-entropy."""
        return self.weight / len(self.answer) if self.mean and self.answer else self.weight


@dataclass(frozen=True)
class Encoder:
    """Tokenises examples for one model. Lengths are in tokens."""

    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    max_source: int
    max_target: int

    def encode(self, examples: Iterable[Example]) -> Sequence[Encoded]:
        """Token ids of every example, in order; on disk where they are many."""
        return keep(map(self._one, examples), Encoded, lasting=False)

    def encode_rows(self, rows: Iterable[Row]) -> Sequence[Encoded]:
        """The same of every training row."""
        return keep(map(self._row, rows), Encoded, lasting=False)

    def _row(self, row: Row) -> Encoded:
        one = self._one(row.example, row.tokens)
        return replace(one, stage=row.stage, weight=row.weight * one.weight, mean=row.mean)

    def longest_answer(self, answers: Sequence[str], chat: bool = False) -> int:
        """Tokens of the longest of `answers` with its end token: where generation may stop."""
        return max(self.answer_length(answer, chat) for answer in answers)

    def answer_length(self, answer: str, chat: bool = False) -> int:
        """Tokens of an answer with its end token, uncut."""
        return len(self._alone(answer, chat)) + 1

    def read_back(self, answer: str, chat: bool = False) -> str:
        """An answer as it looks once it was generated: its tokens, decoded."""
        return str(self.tokenizer.decode(self._alone(answer, chat), skip_special_tokens=True)).strip()

    @property
    def longest(self) -> int:
        """Tokens of the longest input that the limits let through, on the longer side of an encoder-decoder."""
        return self.read(self.max_source, self.max_target)

    def input_length(self, example: Example, answer: int, shown: bool = False) -> int:
        """Tokens that the model reads with `answer` tokens of an answer, as `read` counts them."""
        return self.read(len(self._one(example).prompt), answer, shown)

    def read(self, prompt: int, answer: int, shown: bool = False) -> int:
        """Tokens that the model reads of a prompt and an answer of so many, on the longer side of an encoder-decoder; where
        they are `shown` first, as a demonstration, it reads the answer once more, and the prompt too."""
        if self.encoder_decoder:
            return max(2 * prompt + answer if shown else prompt, answer)
        return (2 if shown else 1) * (prompt + answer)

    def generated(self, task: Task) -> int:
        """Tokens after which generation of a task's answers stops: see `limit`."""
        return self.limit(task.closed, task.answer_tokens, task.in_chat)

    def limit(self, words: Sequence[str] | None, tokens: int | None = None, chat: bool = False) -> int:
        """Tokens after which an answer ends: the longest of all words that may be one, with its end token; of free text
        (none) the task's own limit `tokens`, or the run's."""
        return self.longest_answer(words, chat) if words else tokens or self.max_target

    def expected(self, words: Sequence[str] | None, chat: bool = False) -> list[tuple[int, ...]]:
        """The words that an answer may be as token ids with their end token; of free text (none) nothing."""
        return [(*self._alone(word, chat), self.ends(chat)[-1]) for word in words or ()]

    def ends(self, chat: bool) -> list[int]:
        """The tokens that end an answer; in a chat also the one that ends a message there."""
        end = _token(self.tokenizer.eos_token_id, "end")
        return list(dict.fromkeys([end, message_end(self.tokenizer)])) if chat else [end]

    def prompt_length(self, example: Example) -> int:
        """Tokens of a prompt, uncut."""
        return len(self._prompt(self._in_chat(example).prompt, example.chat is not None))

    def _in_chat(self, example: Example) -> Example:
        """An example with what the tokenizer's chat template writes around it, if it is to be in one."""
        if example.chat is None:
            return example
        before, after = around(self.tokenizer, example.chat)
        return replace(example, head=before + example.head, tail=example.tail + after)

    def _one(self, example: Example, most: int | None = None) -> Encoded:
        example, chat = self._in_chat(example), example.chat is not None
        whole = self._prompt(example.prompt, chat)
        if len(whole) > self.max_source:
            prompt, body = self._cut(example)
        else:
            prompt, body = whole, self._body(example, whole)
        answer = self._answer(example, whole)[: (most or example.tokens or self.max_target) - 1]
        return Encoded(tuple(prompt), (*answer, self.ends(chat)[-1]), weight=example.weight, body=body)

    def _body(self, example: Example, prompt: list[int]) -> tuple[int, int]:
        """Where the body stands in a prompt: what neither begins as the head does alone nor ends as the tail does.

        A token in which the body and what stands beside it are merged counts as the body's.
        """
        chat = example.chat is not None
        start = _alike(prompt, _ids(self, example.head, chat)) if example.head else 0
        tail = reversed(_ids(self, example.tail, chat)) if example.tail else ()
        return start, max(start, len(prompt) - _alike(reversed(prompt), tail))

    def _prompt(self, text: str, chat: bool) -> list[int]:
        """A prompt's ids. A decoder goes on where its prompt ends, so an end token that was appended is left out.

        A chat template writes the special tokens itself.
        """
        if chat:
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)
        ids = list(self.tokenizer(text).input_ids)
        return ids[:-1] if not self.encoder_decoder and self._ends(ids) else ids

    def _ends(self, ids: Sequence[int]) -> bool:
        """Whether ids end in the end token, after something else."""
        return len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id

    def _cut(self, example: Example) -> tuple[list[int], tuple[int, int]]:
        """Shorten the body so that instruction and answer cue stay whole; cuts the front where they alone are too long.

        With where the body, or what is left of it, stands.
        """
        head = self._prompt(example.head, example.chat is not None)
        tail = self.tokenizer(example.tail, add_special_tokens=False).input_ids
        if self._ends(head):
            head, tail = head[:-1], [*tail, self.tokenizer.eos_token_id]
        room = self.max_source - len(head) - len(tail)
        body = self.tokenizer(example.body, add_special_tokens=False).input_ids[: max(room, 0)]
        cut = max(0, -room)
        start = max(0, len(head) - cut)
        return [*head, *body, *tail][cut:], (start, start + len(body))

    def _answer(self, example: Example, prompt_ids: list[int]) -> list[int]:
        """Target ids without their end. A decoder-only answer is the continuation of its prompt, as its tokenizer would
        write it: after a space, but for the message of a chat."""
        answer, chat = example.answers[0], example.chat is not None
        if not self.encoder_decoder:
            joint = self._prompt(f"{example.prompt}{'' if chat else ' '}{answer}", chat)
            if prompt_ids and joint[: len(prompt_ids)] == prompt_ids:
                return joint[len(prompt_ids) :]
        return self._alone(answer, chat)

    def _alone(self, answer: str, chat: bool) -> list[int]:
        """An answer tokenised alone, by a decoder after a space: used where the joint text splits the prompt differently."""
        text = answer if self.encoder_decoder or chat else f" {answer}"
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def collate(self, batch: Sequence[Encoded], device: str | torch.device, answers: bool = True) -> Inputs:
        """A batch of rows, padded: `raycl.adapters.token_rows`."""
        pad, decoder = _token(self.tokenizer.pad_token_id, "padding"), not self.encoder_decoder
        behind = [one.answer for one in batch] if answers else None
        inputs = batch_of([one.prompt for one in batch], behind, pad, self.encoder_decoder, device)
        further = _origins(batch, device)
        if any(one.body is not None for one in batch):
            further["body_mask"] = _bodies(batch, inputs.ids.shape[1], answers and decoder, decoder).to(device)
        return replace(inputs, **further)

    def token_rows(self, examples: Iterable[Example]) -> TokenRows:
        """Examples as a method may keep them (a `raycl.methods.common.rows.Read`)."""
        found = [self._one(example) for example in examples]
        return TokenRows(tuple(one.prompt for one in found), tuple(one.answer for one in found))


@lru_cache(maxsize=256)
def _ids(encoder: Encoder, text: str, chat: bool) -> tuple[int, ...]:
    """The ids of a prompt's head or tail, which many examples share."""
    return tuple(encoder._prompt(text, chat))


def _token(token: Any, kind: str) -> int:
    """A special token's id: transformers also allows for none and for lists."""
    if not isinstance(token, int):
        raise ValueError(f"the tokenizer has no {kind} token of one id (it says {token!r})")
    return token


def by_length(examples: Sequence[Encoded], batch_size: int, tokens: int | None = None) -> list[list[int]]:
    """Indices in batches of similar prompt length, longest first, so that padding is small and memory peaks at once.

    A batch has `batch_size` prompts, or as many as `tokens` padded tokens hold, where that is given.
    """
    lengths = [len(one.prompt) for one in examples]
    order = sorted(range(len(examples)), key=lambda i: (-lengths[i], i))
    return [order[cut] for cut in cuts([lengths[i] for i in order], batch_size, tokens)]


def cuts(lengths: Sequence[int], batch_size: int, tokens: int | None = None) -> Iterator[slice]:
    """Where rows of these lengths, the longest first, are cut into batches: every `batch_size`, or where the next row,
    padded to its batch's longest, would be beyond `tokens`. A row that is longer than that is a batch of its own."""
    start = 0
    while start < len(lengths):
        size = batch_size if tokens is None else max(1, tokens // max(1, lengths[start]))
        yield slice(start, start + size)
        start += size


def _origins(batch: Sequence[Encoded], device: str | torch.device) -> dict[str, torch.Tensor]:
    """Stages and weights of the rows, where any row has other than the default."""
    found = {}
    if any(row.stage for row in batch):
        found["stages"] = torch.tensor([row.stage for row in batch], device=device)
    weights = [row.token_weight for row in batch]
    if any(weight != 1 for weight in weights):
        found["weights"] = torch.tensor(weights, device=device)
    return found


def _bodies(batch: Sequence[Encoded], width: int, joined: bool, left: bool) -> torch.Tensor:
    """The mask (B, S) of the bodies in rows of ids, S = `width`, padded on the left or not; 0 where a body is not known.

    `joined`: behind a prompt stands its answer.
    """
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for marks, one in zip(mask, batch, strict=True):
        start, end = one.body or (0, 0)
        shift = width - len(one.prompt) - (len(one.answer) if joined else 0) if left else 0
        marks[shift + start : shift + end] = 1
    return mask


def shared_start(examples: Sequence[Encoded]) -> int:
    """How many tokens all prompts begin with alike; each has at least one more."""
    first = examples[0].prompt[:-1] if examples else ()
    return min((_alike(first, one.prompt[:-1]) for one in examples), default=0)


def _alike(first: Iterable[int], second: Iterable[int]) -> int:
    """How many ids two rows begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
