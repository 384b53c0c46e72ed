"""The documentation as a site: `make docs`. Pages are the Markdown files of the repository, where they stand.

The command line and the fields of a run spec are written anew from the code at every build, into docs/reference/, which git
does not keep.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

from raycl import __version__

ROOT = Path(__file__).resolve().parents[2]
project = "raycl"
version = release = __version__
author = "the authors of raycl"
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx_copybutton"]
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**", "benchmarks/results/**"]
exclude_patterns = [
    "docs/site/**",
    "benchmarks/results/runs/**",
    "benchmarks/results/quality-notes.md",
    ".venv*/**",
    ".git/**",
    "**/node_modules/**",
]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["toc.not_included"]  # results that a page links to need no place in the menu
html_theme = "pydata_sphinx_theme"
html_title = "raycl"
html_theme_options: dict[str, Any] = {
    "navigation_depth": 3,
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_copy_source = html_show_sourcelink = False
html_context = {"default_mode": "auto"}


def setup(app: Any) -> None:
    """Write what is read from the code before Sphinx looks for pages."""
    app.add_lexer("mermaid", TextLexer)  # a diagram on the repository's page; its source here
    app.connect("config-inited", lambda *arguments: write_reference(ROOT / "docs" / "reference"))


def write_reference(folder: Path) -> None:
    """The command line as Typer documents it, and every field of a run spec."""
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("typer")
    command = [str(program), "raycl.cli.app", "utils", "docs", "--name", "raycl", "--title", "Command line"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    _write(folder / "cli.md", done.stdout.replace("```console", "```sh"))
    _write(folder / "fields.md", fields_page())


def fields_page() -> str:
    """What `raycl fields` prints, for the methods' shared fields and those of GainLoRA."""
    from raycl.cli.show import fields

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fields("gain_lora")
    return (
        "# Fields of a run spec\n\nAs `raycl fields METHOD` lists them; the fields under `method` are those of `gain_lora`, "
        f"each [method's page](../methods/README.md) has its own.\n\n```text\n{printed.getvalue().strip()}\n```\n"
    )


def _write(path: Path, text: str) -> None:
    """Write a page only where it changes, so that a second build has nothing to do."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
