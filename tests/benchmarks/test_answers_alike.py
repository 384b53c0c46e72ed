"""What is said of answers that were read and answers that were written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.kit.scripts import script


def way(read: list[str], written: list[str]) -> Any:
    """One task of as many prompts."""
    tests = [SimpleNamespace(prompt=f"question {number} | of\nmany") for number in range(len(read))]
    task = SimpleNamespace(name="toy", test=tests)
    return SimpleNamespace(tasks=[task], as_raycl=lambda: read, token_by_token=lambda: written)


def test_answers_that_differ_are_listed_with_their_prompts() -> None:
    """Two of three are alike; the third stands with both answers, in a table that its signs do not break."""
    module = script("answers_alike")
    found = module.compared(way(["a", "b", "c"], ["a", "x|y", "c"]))
    assert (found["prompts"], found["alike"]) == (3, 2)
    assert found["apart"] == [{"task": "toy", "prompt": "question 1 | of\nmany", "read": "b", "written": "x|y"}]
    held = {"conditions": {"hardware": "a CPU", "torch": "2"}}
    page = module.page({"o_lora fp32": found | held})
    assert "| o_lora fp32 | 3 | 2 |" in page
    assert "| toy | question 1 \\| of many | b | x\\|y |" in page
    assert "answers that differ" not in module.page({"o_lora fp32": module.compared(way(["a"], ["a"])) | held})
