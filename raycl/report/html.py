"""One self-contained HTML page about a sweep or a comparison: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from raycl.report.sequence_view import SequenceView, TrialView


def write_html(
    path: Path,
    title: str,
    sequences: Sequence[SequenceView],
    leaderboard: Sequence[Mapping[str, object]] | None = None,
    sweep: Sequence[TrialView] | None = None,
) -> Path:
    """Write the page about `sequences` to `path` and return it; a section for which there is no data is left out.

    `leaderboard` has one row per line, best first: column -> text or number (none = empty), the columns of the first row.
    `sweep` has the trials of a sweep. The charts are also written as PNG and SVG into `<name of the page>-figures`.
    """
    environment = Environment(
        loader=PackageLoader("raycl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("report.html").render(
        title=title, sequences=sequences, leaderboard=leaderboard, sweep=sweep
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
