"""docs/troubleshooting.md quotes messages that raycl really has."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.places import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
OTHERS = {"ray job submit", "token authentication"}
"""What is quoted of other programs."""
QUOTED = [
    words
    for cell in re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    for words in re.findall(r"`([^`]+)`", cell)
    if words not in OTHERS
]


@pytest.fixture(scope="module")
def texts() -> str:
    """All that the package's source says in quotes, a text's pieces put together."""
    found: list[str] = []
    for file in sorted((ROOT / "raycl").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) > 12


@pytest.mark.parametrize("words", QUOTED)
def test_a_quoted_message_is_in_the_source(words: str, texts: str) -> None:
    assert words in texts
