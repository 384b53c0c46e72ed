"""The page that says of every table what was run, made from the specs and the reports that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycl.files import Json
from raycl.report.cards import markdown_table
from raycl.reproduction.catalogue import ALL
from raycl.reproduction.cost import estimate
from raycl.reproduction.form import Reproduction, Row, Scale
from raycl.reproduction.record import COMPUTED, OUTSIDE, WIRED, WITHIN, report_name
from raycl.reproduction.specs import Place, sequences

NOT_RUN = "not run"
SCALES: tuple[Scale, ...] = ("smoke", "paper")
HEAD = """# Reproductions of published tables and figures

Made by `raycl reproductions` from `raycl/reproduction/` and the reports in
`benchmarks/results/reproductions/`; a test checks that this page is current.

    raycl reproduce                                          what there is
    raycl reproduce am_lora/table1 --plan --scale paper      what would run, and its cost
    raycl reproduce all --scale smoke                        every cell with a tiny random model, in minutes
    raycl reproduce slao/main --scale paper --data FOLDER    the real thing, on a Ray cluster with GPUs

What the words mean:

- **wired**: the row ran at smoke scale. Every stage was trained and scored, with a tiny random model, eight examples and two
  tasks. This shows that the settings are accepted and the parts fit together. It says nothing about the published figures.
- **computed**: follows from shapes, exactly; needs no training at any scale.
- **reproduced**: ran at paper scale, and every figure of the row is within the tolerance of the published one.
- **differs**: ran at paper scale, and some figure is not.
- **run, no figures**: ran at paper scale, but no published number is known to compare with.
- **partly run**: some cells of the row ran at paper scale, not all.
- **not run**: nothing of the kind. No GPU was at hand for any row that trains so far.

GPU-hours are a rough estimate (A100, a third of its peak); the formula and its assumptions are in
`raycl/reproduction/cost.py`. Published figures marked *second hand* come from later papers and digests and were not
checked against the paper itself."""


def write_status(page: Path, results: Path) -> None:
    """Write the page. `results` holds the reports that are kept."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(status_page(results), encoding="utf-8")


def listing() -> str:
    """Every reproduction in one line each, as a table."""
    rows = [
        [one.id, one.title, len(one.rows), ", ".join(column.label for column in one.columns)] for one in ALL.values()
    ]
    return markdown_table(("id", "what", "rows", "columns"), rows)


def status_page(results: Path) -> str:
    """The text of the page."""
    reports = {(one.id, scale): _read(results, one, scale) for one in ALL.values() for scale in SCALES}
    rows = [_summary(one, reports) for one in ALL.values()]
    titles = ("table or figure", "what", "figures", "smoke scale", "paper scale", "stage runs", "GPU-hours")
    sections = [HEAD, markdown_table(titles, rows), *(_section(one, reports) for one in ALL.values())]
    return "\n\n".join(sections) + "\n"


def _read(results: Path, one: Reproduction, scale: Scale) -> Json | None:
    """The report that is kept; what is computed has no scale, so any report of it counts."""
    for kept in (scale,) if one.trains else SCALES:
        path = results / f"{report_name(one.id, kept)}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def _summary(one: Reproduction, reports: dict[tuple[str, str], Json | None]) -> list[Any]:
    """One line about one table."""
    cost = estimate(sequences(one, Place("paper"))) if one.trains else None
    words = [_together([row_status(one, row, reports[one.id, scale]) for row in one.rows]) for scale in SCALES]
    figures = (
        "none known" if one.borrowed is None else ("second hand" if one.borrowed.second_hand else "from the paper")
    )
    numbers = [f"{cost.stages:,}", f"{cost.gpu_hours:,.0f}"] if cost else ["0", "0"]
    return [f"[{one.id}](#{one.id.replace('/', '')})", one.title, figures, *words, *numbers]


def _together(words: list[str]) -> str:
    """The status of a table from those of its rows."""
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{words.count(word)} of {len(words)} rows {word}" for word in dict.fromkeys(words))


def row_status(one: Reproduction, row: Row, report: Json | None) -> str:
    """What a report says of a row; cells that the spec has and the report lacks count as not run."""
    found = {
        (cell["row"], cell["column"], cell["measure"]): cell["verdict"] for cell in (report or {}).get("cells", [])
    }
    cells = [(row.label, column.label, measure) for column in one.columns for measure in column.measures]
    verdicts = [found.get(cell) for cell in cells]
    if not any(verdicts):
        return NOT_RUN
    if None in verdicts:
        return "partly run"
    if set(verdicts) in ({WIRED}, {COMPUTED}):
        return str(verdicts[0])
    if OUTSIDE in verdicts:
        return f"differs in {verdicts.count(OUTSIDE)} of {len(verdicts)} figures"
    return "reproduced" if WITHIN in verdicts else "run, no figures"


def _section(one: Reproduction, reports: dict[tuple[str, str], Json | None]) -> str:
    """All rows of one table, and what is not known about it."""
    models = ", ".join(dict.fromkeys(column.model for column in one.columns))
    columns = ", ".join(column.label for column in one.columns)
    facts = [f"Columns: {columns}. Models: {models}."]
    if one.trains:
        facts.append(f"Seeds: {one.seeds}. Tolerance: {one.tolerance:g} points. {one.tolerance_reason}")
    if one.protocol:
        facts.append(f"Every row follows the published protocol of `{one.protocol}` unless its note says otherwise.")
    rows = [
        [row.label, *(row_status(one, row, reports[one.id, scale]) for scale in SCALES), row.note] for row in one.rows
    ]
    unknown = [f"- {line}" for line in one.unknown]
    notes = ["Not known, or not confirmed:", "\n".join(unknown)] if unknown else []
    head = f"## {one.id}\n\n{one.title}."
    return "\n\n".join(
        [head, "\n".join(facts), markdown_table(("row", "smoke scale", "paper scale", "note"), rows), *notes]
    )
