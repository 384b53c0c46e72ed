"""Examples as token ids, prompts and answers: batches of them, and their form as tensors, for who keeps some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycl.adapters.backbone import IGNORE, Inputs

IDS, LENGTHS = "ids", "lengths"
"""Names of the tensors that rows are kept as."""
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenRows:
    """Examples as the model reads them."""

    prompts: tuple[Ids, ...]
    answers: tuple[Ids, ...]
    """As many, each with its end token."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __add__(self, others: TokenRows) -> TokenRows:
        """These rows, and then the others."""
        return TokenRows(self.prompts + others.prompts, self.answers + others.answers)

    def tensors(self) -> dict[str, Tensor]:
        """`ids` (n, W), int32: a row's prompt and answer, and 0 behind them; `lengths` (n, 2), int32: tokens of each."""
        whole = [[*prompt, *answer] for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        width = max(map(len, whole), default=0)
        ids = [padded(row, width, 0, left=False) for row in whole]
        lengths = [[len(prompt), len(answer)] for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        return {name: torch.tensor(value, dtype=torch.int32) for name, value in ((IDS, ids), (LENGTHS, lengths))}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TokenRows:
        """The rows that `tensors` made them of."""
        rows = zip(tensors[IDS].tolist(), tensors[LENGTHS].tolist(), strict=True)
        pairs = [(tuple(ids[:prompt]), tuple(ids[prompt : prompt + answer])) for ids, (prompt, answer) in rows]
        return cls(tuple(prompt for prompt, _ in pairs), tuple(answer for _, answer in pairs))

    def batch(self, places: Sequence[int], encoder_decoder: bool, device: torch.device) -> Inputs:
        """Some of the rows, by place, with their answers as a batch. What pads is token 0, which nothing reads."""
        pairs = [(self.prompts[place], self.answers[place]) for place in places]
        return batch_of([one for one, _ in pairs], [one for _, one in pairs], 0, encoder_decoder, device)


def batch_of(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]] | None,
    pad: int,
    encoder_decoder: bool,
    device: str | torch.device,
) -> Inputs:
    """Pad a batch. Decoder-only rows are padded on the left, so that answers and continuations align on the right.

    Without answers (none) the prompts alone are there, and no labels.
    """
    left = not encoder_decoder
    behind = [()] * len(prompts) if answers is None or encoder_decoder else answers
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, behind, strict=True)]
    width = max(map(len, rows))

    def tensor(lists: Sequence[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([padded(one, width, value, left) for one in lists], device=device)

    ids, mask = tensor(rows, pad), tensor([[1] * len(row) for row in rows], 0)
    if answers is None:
        return Inputs(ids, mask, mask)
    if encoder_decoder:
        longest = max(1, *map(len, answers))  # a batch of filler rows only still needs a position
        labels = [padded(answer, longest, IGNORE, left=False) for answer in answers]
        return Inputs(ids, mask, mask, torch.tensor(labels, device=device))
    both = list(zip(prompts, answers, strict=True))
    prompt_mask = tensor([[1] * len(prompt) + [0] * len(answer) for prompt, answer in both], 0)
    return Inputs(ids, mask, prompt_mask, tensor([[IGNORE] * len(p) + list(answer) for p, answer in both], IGNORE))


def padded(row: Sequence[int], width: int, value: int, left: bool) -> list[int]:
    """A row filled up with `value` to `width`, in front of it or behind."""
    filler = [value] * (width - len(row))
    return [*filler, *row] if left else [*row, *filler]
