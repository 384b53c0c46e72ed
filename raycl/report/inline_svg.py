"""A matplotlib figure as SVG inside an HTML page, in the page's own colours, so that it reads in light and dark."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from raycl.report.charts import GRID, PAPER
from raycl.report.plots import OKABE_ITO, REPRODUCIBLE, lay_out

NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
VARIABLES = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(OKABE_ITO)}
VARIABLES |= {GRID: "var(--grid)", PAPER: "var(--page)", "#000000": "currentColor"}
"""Colours as drawn -> as the page sets them."""
SMALL = 4.5
"""A wider figure, in inches, scrolls on a narrow screen: its text would shrink beyond reading."""
PIXELS = 96
"""CSS pixels of an inch."""


def inline_svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure's <svg> element: transparent, text as text; `name` keeps its ids apart from other figures'."""
    stream = io.StringIO()
    lay_out(figure)
    with mpl.rc_context(REPRODUCIBLE):
        figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    root = ElementTree.fromstring(stream.getvalue())
    root.remove(root[0])  # a style sheet that would act on the whole page
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        values = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib = {key: _attribute(key, value, name) for key, value in values.items()}
    width, height = (f"{inches * PIXELS:.0f}" for inches in figure.get_size_inches())
    root.attrib = {"viewBox": root.attrib["viewBox"], "width": width, "height": height, "role": "img"}
    root.attrib["aria-label"] = title
    if figure.get_size_inches()[0] > SMALL:
        root.attrib["class"] = "large"
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, name: str) -> str:
    """An attribute with ids of its own and the page's colours."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?", "", value)  # the page's own
        return re.sub(r"#[0-9a-f]{6}\b", lambda colour: VARIABLES.get(colour[0], colour[0]), value)
    return value.replace("url(#", f"url(#{name}-")
