"""What all HTML pages share: sections of charts and tables in one file that loads nothing.

Its one script sorts and filters tables. It is raycl's own; the page's policy names it by its hash and forbids all others.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from raycl.files import write_text
from raycl.report import charts
from raycl.report.charts import Chart, Style, alone
from raycl.report.heat import Heat
from raycl.report.inline_svg import inline_svg

DASH = "–"


@dataclass(frozen=True)
class Section:
    """A part of a page: charts or tables under a heading."""

    id: str
    heading: str
    note: str
    charts: Sequence[Chart] = ()
    heats: Sequence[Heat] = ()
    legend: bool = False
    """Whether the styles of the page stand below the heading."""


@dataclass(frozen=True)
class Table:
    """A part of a page that is one table of text and numbers."""

    id: str
    heading: str
    note: str
    rows: Sequence[Mapping[str, object]]
    """Column -> text or number (none = empty); the columns are those of the first row."""


@dataclass(frozen=True)
class _Drawn:
    """A section whose charts are drawn."""

    id: str
    heading: str
    note: str
    legend: bool
    svgs: list[Markup] = field(default_factory=list)
    heats: Sequence[Heat] = ()


def write_page(
    path: Path, template: str, title: str, sections: Sequence[Section], styles: Mapping[str, Style], **values: object
) -> Path:
    """Fill a template that extends `page.html`, write it to `path` at once, and return that.

    `styles` are those of the legend; `values` are what the template wants beside it.
    """
    environment = Environment(
        loader=PackageLoader("raycl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"value": _value, "measures": charts.measures, "breakable": _breakable}
    number = count(1)
    drawn = [
        _Drawn(
            one.id,
            one.heading,
            one.note,
            one.legend,
            [_svg(chart, f"f{next(number)}") for chart in one.charts],
            one.heats,
        )
        for one in sections
    ]
    script = resources.files("raycl.report").joinpath("templates", "tables.js").read_text(encoding="utf-8")
    shared = {"title": title, "sections": drawn, "styles": styles, "script": Markup(script)}
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template).render(**shared, script_hash=hashed, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, text)


def _svg(chart: Chart, name: str) -> Markup:
    """One chart alone."""
    return inline_svg(alone(chart), name, chart.title)


def _breakable(text: object) -> Markup:
    """A heading that a narrow column breaks after a dot, an underscore or the like, and never inside a word."""
    return Markup(re.sub(r"([._,/:=])(?=\S)", r"\1<wbr>", str(escape(str(text)))))


def _value(value: object) -> str:
    """A cell of a table as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
