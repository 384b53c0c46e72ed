"""Greedy answers where few are expected: a prompt is read once, and whole answers are checked behind it.

The result is that of decoding token by token. The likeliest token after a prompt picks one of the expected answers that
begin with it; one pass then reads that answer whole, and says after each of its tokens which one is the likeliest: the row
follows the answer as far as they agree, and from there on another expected one, or none: then it gains one token a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raycl.models.reading import Reading

Answer = tuple[int, ...]
"""Token ids of an answer, its end token included."""
ROUNDING = 2.0**-7
"""Share of the largest logit that two others may be apart and still change places: the distance of neighbours in bf16."""


def follow(
    reading: Reading, first: Tensor, expected: Sequence[Answer], ends: Sequence[int], length: int
) -> list[tuple[list[int], bool]]:
    """What greedy decoding writes behind each prompt that was read: token ids up to an end token, at most `length` of them;
    and whether one of them was all but another (`close`).

    `first` (B, V) are the logits of the first token; `ends` end an answer.
    """
    written = [[token] for token in first.argmax(dim=-1).tolist()]
    doubtful = close(first)
    while True:
        going = [not (row[-1] in ends or len(row) == length) for row in written]
        if not any(going):
            return list(zip(written, doubtful, strict=True))
        # Rows that have ended stay in the batch: a gate weighs each row where it stood when the prompts were read.
        tried = [_tried(row, expected, length) if on else row[:1] for row, on in zip(written, going, strict=True)]
        logits = reading.follow(tried)
        likeliest, near = logits.argmax(dim=-1).tolist(), close(logits)
        for index, row in enumerate(written):
            if going[index]:
                start = len(row) - 1
                _take(row, tried[index], likeliest[index], ends)
                doubtful[index] |= any(near[index][start : len(row) - 1])


def close(logits: Tensor) -> list[Any]:
    """Whether rounding in bf16 may choose between the two likeliest tokens of (..., V): nested lists."""
    best, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    return (best - second <= ROUNDING * best.abs()).tolist()


def _tried(written: Sequence[int], expected: Sequence[Answer], length: int) -> list[int]:
    """What is read next for a row: what it has written, and the rest of the first expected answer that begins so, whose end
    token need not be read."""
    count = len(written)
    whole = next((one for one in expected if len(one) > count and list(one[:count]) == list(written)), None)
    return list(written) if whole is None else list(whole[: min(len(whole) - 1, length - 1)])


def _take(written: list[int], tokens: Sequence[int], likeliest: Sequence[int], ends: Sequence[int]) -> None:
    """Append to a row what is likeliest after its last token, and so on as long as that is what was tried and no end."""
    for place in range(len(written) - 1, len(tokens)):
        written.append(likeliest[place])
        if likeliest[place] in ends or [likeliest[place]] != list(tokens[place + 1 : place + 2]):
            return
