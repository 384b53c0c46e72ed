"""Greedy answers where few are expected: a prompt is read once, and whole answers are checked behind it.

The result is that of decoding token by token. The likeliest token after a prompt picks one of the expected answers that
begin with it; one pass then reads that answer whole, and says after each of its tokens which one is the likeliest: the row
follows the answer as far as they agree, and from there on another expected one, or none: then it gains one token a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raycl.models.reading import Reading

Answer = tuple[int, ...]
"""Token ids of an answer, its end token included."""


def follow(
    reading: Reading, first: Tensor, expected: Sequence[Answer], ends: Sequence[int], length: int
) -> list[list[int]]:
    """What greedy decoding writes behind each prompt that was read: token ids up to an end token, at most `length` of them.

    `first` (B, V) are the logits of the first token; `ends` end an answer.
    """
    written = [[token] for token in first.argmax(dim=-1).tolist()]
    while True:
        going = [not (row[-1] in ends or len(row) == length) for row in written]
        if not any(going):
            return written
        # Rows that have ended stay in the batch: a gate weighs each row where it stood when the prompts were read.
        tried = [_tried(row, expected, length) if on else row[:1] for row, on in zip(written, going, strict=True)]
        likeliest = reading.follow(tried).argmax(dim=-1).tolist()
        for row, tokens, after, on in zip(written, tried, likeliest, going, strict=True):
            if on:
                _take(row, tokens, after, ends)


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
