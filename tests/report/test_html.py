"""The HTML page: well-formed, closed in itself, with a section for all that there is and for nothing else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.views import SequenceView, StageView, TrialView
from raycl.report.html import MOST_SEQUENCES, write_html

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}
HOSTILE = '</title></style><script>alert("x")</script> $\\frac{$ & \'"id="f1-figure_1" --> {{ 7*7 }} \x07'
SECTIONS = {"leaderboard", "sequences", "sweep", "ap", "forgetting", "cost", "accuracy", "branches", "angles"}


class Reader(HTMLParser):
    """Collects tags, ids and text, and insists that tags close in the order they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.broken = False
        """Whether the last tag was a place where a word may break."""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.broken = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.broken = False

    def handle_data(self, data: str) -> None:
        if self.broken:
            self.words[-1] += data
        else:
            self.words.append(data)
        self.broken = False

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def sections(self) -> set[str]:
        return {attributes["id"] or "" for tag, attributes in self.tags if tag == "section"}


def matrix_of(tasks: list[str], stages: int | None = None) -> AccuracyMatrix:
    """A task's score falls by five a stage; the next task has 20 before its own."""
    matrix = AccuracyMatrix(tasks)
    for stage in range((len(tasks) if stages is None else stages) + 1):
        for i, task in enumerate(tasks[: stage + 1]):
            matrix.set(stage, task, 90.0 - 5 * (stage - i - 1) if i < stage else 20.0)
    return matrix


def sequence(label: str = "one", tasks: list[str] | None = None, **changes: Any) -> SequenceView:
    """A finished GainLoRA sequence of three tasks."""
    tasks = tasks or ["yelp", "amazon", "yahoo"]
    stages = [
        StageView(
            stage=i,
            task=task,
            key=f"{i:064x}",
            steps=[],
            gauges={f"gate_mean/{branch}": 0.5 / branch for branch in range(1, i + 1)},
            seconds={"train": 10.0 * i},
            trainable=1000,
            bytes=4096,
        )
        for i, task in enumerate(tasks, start=1)
    ]
    view = SequenceView(
        label=label,
        line="gain_lora over o_lora",
        order="std-1",
        seed=0,
        params={"method.name": "gain_lora", "seed": "0"},
        matrix=matrix_of(tasks),
        stages=stages,
        angles=np.full((len(tasks), len(tasks)), 61.25),
    )
    return dataclasses.replace(view, **changes)


TRIALS = [
    TrialView("0", {"train.lr": 1e-3, "method.over": "o_lora"}, 70.0, 3),
    TrialView("1", {"train.lr": 1e-4, "method.over": "inf_lora"}, 40.5, 1, "stopped after stage 1"),
    TrialView("2", {"train.lr": 1e-2, "method.over": None}, None, 0, "failed"),
]


@pytest.fixture(autouse=True)
def page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures beside the page, which take most of the time; who wants them undoes it."""
    monkeypatch.setattr("raycl.report.html.write_figures", lambda *arguments: None)


def page(tmp_path: Path, *arguments: Any, **options: Any) -> tuple[str, Reader]:
    """The page and what is read of it."""
    text = write_html(tmp_path / "page.html", *arguments, **options).read_text(encoding="utf-8")
    return text, Reader(text)


def test_with_all_data_every_section_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its figures are there, on the page and beside it."""
    monkeypatch.undo()
    board = [{"method": "gain_lora", "AP": 71.234, "sd": None, "sequences": 1200}]
    sequences = [sequence(), sequence("two", line="o_lora", params={"method.name": "o_lora", "seed": "0"})]
    _, found = page(tmp_path, "All", sequences, leaderboard=board, sweep=TRIALS)
    assert found.sections == SECTIONS
    for words in ("71.23", "1,200", "61", "0.17", "gain_lora over o_lora", "method.name"):
        assert words in found.text
    charts = sum(tag == "svg" and "role" in attributes for tag, attributes in found.tags)
    assert charts == 1 + 1 + 3 + 3  # sweep, AP, tasks, costs
    figures = {path.name for path in (tmp_path / "page-figures").iterdir()}
    names = {"sweep", "ap", "forgetting", "cost", "accuracy-1", "accuracy-2"}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_without_data_a_section_is_left_out(tmp_path: Path) -> None:
    """No leaderboard, sweep, gauges, branches, stages or sequence: the rest stands."""
    bare = sequence(angles=None, stages=[dataclasses.replace(stage, gauges={}) for stage in sequence().stages])
    _, found = page(tmp_path, "Bare", [bare])
    assert found.sections == {"sequences", "ap", "forgetting", "cost", "accuracy"}
    fresh = sequence(matrix=matrix_of(["yelp", "amazon"], stages=-1), stages=[], angles=None, status="0 of 2 stages")
    _, found = page(tmp_path, "Fresh", [fresh])
    assert found.sections == {"sequences"}
    assert "0 of 2 stages" in found.text
    _, found = page(tmp_path, "None", [], leaderboard=[], sweep=[dataclasses.replace(TRIALS[2])])
    assert found.sections == {"sequences"}


def test_nothing_comes_from_outside_or_runs(tmp_path: Path) -> None:
    """No URL in any attribute or style, no handler, one script, and a policy that forbids all but that one."""
    text, found = page(tmp_path, "Closed", [sequence()], sweep=TRIALS)
    assert not re.search(r"https?:|@import|url\((?!#)|javascript:|xmlns", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset")]
        assert (attributes.get("href") or "#").startswith("#"), tag
    policy = next(one for tag, one in found.tags if tag == "meta" and one.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["content"] == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    """Many figures on one page do not take each other's markers and clips."""
    text, found = page(tmp_path, "Ids", [sequence(), sequence("two")], sweep=TRIALS)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert wanted and set(wanted) <= set(ids)


def test_hostile_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of tasks, methods, settings and titles are shown, never parsed: no tag, no mathtext, no template."""
    monkeypatch.undo()
    text, found = page(
        tmp_path,
        HOSTILE,
        [sequence(HOSTILE, tasks=[HOSTILE, "_b"], line=HOSTILE, status=HOSTILE, params={"a": HOSTILE})],
        leaderboard=[{HOSTILE: HOSTILE}],
        sweep=[TrialView(HOSTILE, {HOSTILE: HOSTILE, "b": 1}, 3.0), TrialView("x", {HOSTILE: "y", "b": 2}, 4.0)],
    )
    assert text.count("<script") == 1 and 'alert("x")' not in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "{{ 7*7 }}" in found.text
    assert text.count("</title>") == text.count("</style>") == 1


def test_charts_use_the_colours_of_the_page(tmp_path: Path) -> None:
    """Nothing drawn is black or white of itself, so light and dark both read."""
    text, _ = page(tmp_path, "Colours", [sequence()], sweep=TRIALS)
    svgs = "".join(re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL))
    assert not re.search(r"#(000000|ffffff|0072b2)", svgs)
    assert "currentColor" in svgs
    assert "var(--c0)" in svgs


def test_other_tasks_are_not_laid_over_each_other(tmp_path: Path) -> None:
    """Sequences over two orders have two charts of AP."""
    other = sequence("two", tasks=["yahoo", "yelp", "amazon"], order="std-2")
    _, found = page(tmp_path, "Orders", [sequence(), other])
    assert {"ap-1", "ap-2", "forgetting-1", "forgetting-2"} <= found.sections
    assert "order std-2" in found.text


def test_many_sequences_are_listed_and_some_are_drawn(tmp_path: Path) -> None:
    """The list has all; what is left out below is said."""
    many = [sequence(f"number {i}", tasks=["a", "b"]) for i in range(MOST_SEQUENCES + 5)]
    _, found = page(tmp_path, "Many", many)
    assert f"number {MOST_SEQUENCES + 4}" in found.text
    assert "5 more sequences" in found.text


def test_many_trials_and_wide_ranges(tmp_path: Path) -> None:
    """Numbers over decades are drawn to a logarithmic scale; equal scores and one value do no harm."""
    trials = [TrialView(str(i), {"lr": 10.0**-i, "flag": i % 2 == 0, "same": 1}, 50.0, 3) for i in range(1, 10)]
    text, _ = page(tmp_path, "Sweep", [], sweep=trials)
    for words in ("0.1", "1e-05", "1e-09", "True", "50"):
        assert f">{words}</text>" in text


def test_variants_of_one_method_have_lines_of_their_own(tmp_path: Path) -> None:
    """Each label is in the legend of every chart, with its own colour; sequences of one label share it."""
    labels = ["a", "o_lora:rank=8", "a"]
    views = [sequence(f"{label}  std-1  seed {seed}", line=label) for seed, label in enumerate(labels)]
    text, found = page(tmp_path, "Variants", views)
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text, flags=re.DOTALL)
    assert len(legends) == 3, "AP, forgetting, cost"
    for legend in legends:
        entries = re.findall(r"color:var\(--(c\d)\).*?</svg>\s*(.*?)</li>", legend, flags=re.DOTALL)
        assert [(colour, label.replace("<wbr>", "")) for colour, label in entries] == [
            ("c0", "a"),
            ("c1", "o_lora:rank=8"),
        ]
    ap = re.search(r'<section id="ap">(.*?)</section>', text, flags=re.DOTALL)
    drawn = re.findall(r"stroke: var\(--(c\d)\)", ap[1].partition("</ul>")[2])
    assert {"c0", "c1"} <= set(drawn)
    assert "o_lora:rank=8  std-1  seed 1" in found.text


def test_headings_break_after_signs_and_never_inside_words(tmp_path: Path) -> None:
    """So that a narrow column or screen needs not cut them."""
    views = [sequence(str(rank), params={"method.gate_hidden": str(rank)}) for rank in (4, 8)]
    text, _ = page(tmp_path, "Sweep on dbpedia, task1572_samsum_summary", views)
    assert '<th class="setting">method.<wbr>gate_<wbr>hidden</th>' in text
    assert "<h1>Sweep on dbpedia, task1572_<wbr>samsum_<wbr>summary</h1>" in text
    assert "overflow-wrap: anywhere" not in text


def test_no_chart_is_wider_than_a_phone_unless_it_says_so(tmp_path: Path) -> None:
    """Of 390 pixels a page's margins leave some 365: what is drawn wider than 4.5 inches could not be read there when
    shrunk, so it scrolls below a line that says so."""
    many = [TrialView(str(i), {f"method.s{n}": i for n in range(6)}, 50.0 + i, 3) for i in range(3)]
    text, _ = page(tmp_path, "Phone", [sequence()], sweep=many)
    widths = {int(width) for width in re.findall(r'<svg viewBox="[^"]*" width="(\d+)"', text)}
    assert [width for width in widths if width > 4.5 * 96] == [int(1.5 * 7 * 96)], "the parallel coordinates alone"
    assert text.count('class="large"') == 1
    assert ".chart:has(.large)::before" in text


def test_a_page_is_the_same_twice(tmp_path: Path) -> None:
    """No date, no random id."""
    first, _ = page(tmp_path, "Same", [sequence()], sweep=TRIALS)
    second, _ = page(tmp_path, "Same", [sequence()], sweep=TRIALS)
    assert first == second


def test_seeds_of_a_line_are_one_mean_in_a_band(tmp_path: Path) -> None:
    """Scores 80 and 90 after stage 1: one line through 85, and a band; a single seed has no band."""
    import matplotlib.pyplot as plt

    from raycl.report.charts import ap_chart, styles_of

    views = []
    for seed, score in ((0, 80.0), (1, 90.0)):
        matrix = AccuracyMatrix(["a", "b"])
        matrix.set(1, "a", score)
        views.append(sequence(f"seed {seed}", seed=seed, matrix=matrix))
    figure, (both, alone) = plt.subplots(1, 2)
    ap_chart(views, styles_of([views[0].line])).draw(both)
    ap_chart(views[:1], styles_of([views[0].line])).draw(alone)
    assert [list(line.get_ydata()) for line in both.lines] == [[85.0]] and len(both.collections) == 1
    assert [list(line.get_ydata()) for line in alone.lines] == [[80.0]] and not alone.collections
    plt.close(figure)


def test_paired_differences_are_a_table_of_their_own(tmp_path: Path) -> None:
    """As the comparison tells them."""
    rows = [{"first": "a", "second": "b", "AP difference": "+2.50", "p": "0.03"}]
    _, found = page(tmp_path, "Differences", [sequence()], differences=rows)
    assert "differences" in found.sections and "+2.50" in found.text
