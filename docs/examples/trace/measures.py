"""How TRACE scores lines of code and chosen letters; from 0 to 1, the best of all references."""

import re
from difflib import SequenceMatcher

LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
"""A literal that Py150 wrote into a mark."""
EMPTY = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
"""Marks of literals that it left out -> what stands for them."""


def code_similarity(prediction: str, references: list[str]) -> float:
    """Twice the characters of the matching blocks over the characters of both, literals put back: Py150."""
    code = _with_literals(prediction)
    return max(SequenceMatcher(None, code, _with_literals(one), autojunk=False).ratio() for one in references)


def first_letter(prediction: str, references: list[str]) -> float:
    """1 where the answer begins with the reference's letter, behind `Answer: ` or without: ScienceQA."""
    return float(_letter(prediction) in map(_letter, references))


def _with_literals(code: str) -> str:
    for mark, value in EMPTY.items():
        code = code.replace(mark, value)
    return LITERAL.sub(r"\1", code)


def _letter(text: str) -> str:
    return text.strip().removeprefix("Answer:").strip()[:1]
