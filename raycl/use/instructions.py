"""A few instructions whose following can be checked without a judge: how much of it a model keeps while it learns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

TOKENS = 40
"""Longest answer to an instruction."""
Check = Callable[[str], bool]
"""Whether an answer, stripped, does as it was told."""


@dataclass(frozen=True)
class Instruction:
    """What a model is told, and how its answer is checked."""

    text: str
    check: Check

    def followed(self, answer: str) -> bool:
        """Whether an answer does as it was told; what is asked about need not be right."""
        return self.check(answer.strip())


def is_one_of(*words: str) -> Check:
    """The answer is one of these words, in any case, with or without a full stop."""
    return lambda answer: answer.rstrip(".").lower() in words


def has_words(least: int, most: int) -> Check:
    """As many words as that."""
    return lambda answer: least <= len(answer.split()) <= most


def matches(pattern: str) -> Check:
    """The whole answer is of this form."""
    return lambda answer: re.fullmatch(pattern, answer, re.DOTALL) is not None


def is_json_with(key: str) -> Check:
    """A JSON object with this one key."""

    def check(answer: str) -> bool:
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and list(found) == [key]

    return check


INSTRUCTIONS = (
    Instruction("Answer with the word yes or the word no and nothing else: is snow cold?", is_one_of("yes", "no")),
    Instruction("Answer with a number only: how many days does a week have?", matches(r"\d+\.?")),
    Instruction("Answer in exactly two words: what do bees make?", has_words(2, 2)),
    Instruction("Write one sentence about rain, of at most eight words.", has_words(1, 8)),
    Instruction("Write about the sea in at least twenty words.", has_words(20, 10**6)),
    Instruction("Name three colours, separated by commas, and nothing else.", matches(r"[^,\n]+,[^,\n]+,[^,\n]+")),
    Instruction("Write the numbers from 1 to 5, separated by spaces, and nothing else.", matches(r"1 2 3 4 5")),
    Instruction(
        "Write the word river four times and nothing else.",
        matches(r"(?i:river(\s+river){3})"),
    ),
    Instruction("Write the word garden in capital letters, and nothing else.", matches(r"GARDEN\.?")),
    Instruction("Answer in small letters only: what is the capital of France?", matches(r"[^A-Z]+")),
    Instruction("Begin your answer with the word Certainly: what is a lake?", matches(r"Certainly\b.*")),
    Instruction("End your answer with the word END: what is a forest?", matches(r".*\bEND\.?")),
    Instruction("Answer with one question about the weather.", matches(r"[^?]*\?")),
    Instruction("Put your whole answer in double quotation marks: what is the capital of Italy?", matches(r'"[^"]+"')),
    Instruction("Write a list of two fruits, each on its own line behind a hyphen.", matches(r"-[^\n]+\n-[^\n]+")),
    Instruction(
        'Answer with a JSON object whose only key is "city": what is the capital of Spain?', is_json_with("city")
    ),
)
"""Checked by form alone, so that no knowledge is asked for."""


def share_followed(answers: list[str]) -> float:
    """Percent of `INSTRUCTIONS` that the answers, one each, follow."""
    followed = [one.followed(answer) for one, answer in zip(INSTRUCTIONS, answers, strict=True)]
    return 100 * sum(followed) / len(followed)
