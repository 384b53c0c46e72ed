"""The page of one sequence: closed in itself, with a section for all that there is and for nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycl.analysis.views import Forgotten, Given, RunView, SequenceView
from raycl.events import Routing, Step
from raycl.report.run_charts import cost_rows
from raycl.report.run_page import PROMPT_SHOWN, write_run_page
from tests.report.test_html import HOSTILE, Reader, sequence

STEPS = [Step(1, step, 4, 1e-3, loss, 100.0) for step, loss in ((1, 2.5), (4, float("nan")))]
ROUTING = Routing(("yelp", "amazon"), ((9, 0), (1, 7)), (1, 2), 0.0, 80.0)


def one_sequence() -> SequenceView:
    """Three stages; the first has a log."""
    view = sequence()
    first = dataclasses.replace(
        view.stages[0], steps=STEPS, seconds={"train": 10.0, "pass_before": 2.5, "start_up": 4.0}
    )
    return dataclasses.replace(view, stages=[first, *view.stages[1:]], scoring={1: 1.25, 3: 6.0})


def lost(prompt: str = "Is it good?", task: str = "yelp") -> Forgotten:
    """An answer that was right after stage 1 and is wrong at the end."""
    before, after = (Given(7, prompt, ("good", "fine"), text, mark) for text, mark in (("good", 100.0), ("bad", 0.0)))
    return Forgotten(task, 1, before, after)


def page(tmp_path: Path, view: RunView) -> tuple[str, Reader]:
    """The page and what is read of it."""
    text = write_run_page(tmp_path / "report.html", view).read_text(encoding="utf-8")
    return text, Reader(text)


def test_with_all_data_every_section_is_there(tmp_path: Path) -> None:
    """With the measures, the seconds of each kind of work, the routes in percent and both answers."""
    _, found = page(tmp_path, RunView(one_sequence(), ROUTING, (lost(),)))
    sections = {"measures", "accuracy", "progress", "forgetting", "branches", "routes", "loss", "cost", "costs"}
    assert found.sections == sections | {"forgotten", "settings"}
    for words in (
        "Is it good?",
        "good or fine",
        "bad",
        "after stage 1",
        "test example 7",
        "80.0 % found their own task",
    ):
        assert words in found.text, words
    links = {values["href"] for tag, values in found.tags if tag == "a"}
    assert links <= {f"#{name}" for name in found.sections}


def test_without_data_a_section_is_left_out(tmp_path: Path) -> None:
    """No log, no gauges, no routes, nothing forgotten."""
    plain = sequence()
    plain = dataclasses.replace(plain, stages=[dataclasses.replace(one, gauges={}) for one in plain.stages])
    _, found = page(tmp_path, RunView(plain, None, ()))
    assert found.sections == {"measures", "accuracy", "progress", "forgetting", "cost", "costs", "settings"}


def test_what_comes_from_outside_is_text(tmp_path: Path) -> None:
    """Names, prompts and answers of anybody's data run nothing and break nothing."""
    view = sequence(HOSTILE, [HOSTILE, "b", "c"])
    text, found = page(tmp_path, RunView(view, None, (lost(HOSTILE, HOSTILE),)))
    assert not [tag for tag, _ in found.tags if tag in ("iframe", "img")]
    assert "http" not in text.replace("http-equiv", "") and text.count("<script") == 1


def test_a_long_prompt_shows_its_end(tmp_path: Path) -> None:
    """Where the question is; the rest is cut with a sign."""
    _, found = page(tmp_path, RunView(sequence(), None, (lost("Begun " + "x" * PROMPT_SHOWN + " end?"),)))
    assert " end?" in found.text and "Begun" not in found.text and "…" in found.text


def test_costs_are_by_kind_of_work() -> None:
    """Seconds of a stage as its manifest has them, and those of scoring its row."""
    first, second, third = cost_rows(one_sequence())
    assert first == {
        "stage": "1 yelp",
        "training": 10.0,
        "pass before": 2.5,
        "pass after": 0.0,
        "other": 0.0,
        "scoring": 1.25,
        "start-up": 4.0,
        "bytes": 4096,
    }
    assert (second["scoring"], third["scoring"]) == (0.0, 6.0)


@pytest.mark.parametrize("stages", [1, 15])
def test_one_stage_and_many_can_be_drawn(tmp_path: Path, stages: int) -> None:
    """A matrix of one cell has no forgetting yet."""
    tasks = [f"task {number}" for number in range(stages)]
    _, found = page(tmp_path, RunView(sequence(tasks=tasks), None, ()))
    assert len([tag for tag, _ in found.tags if tag == "svg"]) == 2 + stages + 1
