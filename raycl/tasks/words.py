"""The words of a text in any script, for ROUGE-L."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that are written without spaces between words: there each letter, with its marks, is a word."""
WORDS = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+", regex.V1)
STEMMED = 4
"""Letters from which on an ASCII word is stemmed, as in the package rouge-score."""


class Words:
    """Parts texts into words, in the form that the package rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters, marks and digits, without case, in Unicode's compatible form; ASCII words stemmed after Porter.

        A text that has none, such as `+=`, is parted into its characters, so that it can be told from others.
        """
        plain = unicodedata.normalize("NFKC", text).lower()
        words = WORDS.findall(plain) or [char for char in plain if not char.isspace()]
        return [_stemmer().stem(word) if word.isascii() and len(word) >= STEMMED else word for word in words]


@functools.lru_cache(maxsize=1)
def _stemmer() -> Any:
    """Made once: it is costly to build."""
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
