"""Method cards: one Markdown page per method, made from the code, the measured cells and the borrowed figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from raycl.analysis.published import Borrowed, tables_of
from raycl.methods.common.base import Method
from raycl.methods.registry import METHODS, method_class
from raycl.report.fields import kind_of

Cell = dict[str, Any]
SETTINGS = (("t5", "std-1"), ("t5", "long-6"), ("t5", "sni-1"), ("llama", "std-1"), ("llama", "sni-1"))
"""Model families and orders whose published settings a card shows."""


IN_PEFT = {
    "last": '`PeftModel.from_pretrained(base, "<last stage>/adapter")`',
    "sum": "the adapters of all stages loaded and set active together, which adds them up; one alone is another model",
    "fixed": "as one adapter that `raycl export` writes: the branches' weights are the same for all inputs",
    "each": "as one adapter per task and a router of one page, which `raycl export` writes",
    "prompt": "as a PEFT prompt per task, which `raycl export --task` writes; PEFT keeps batches exact without padding only",
    "weights": "as a whole model, which `raycl export` writes",
    "adapted": "not possible: each input trains the last adapter a little further; `method.local_steps=0` serves that one",
    "none": "not possible: serve it with raycl",
}
"""How a model is loaded without raycl."""


def write_cards(folder: Path, results: Path) -> None:
    """Write `folder/NAME.md` for every method and an index. `results` holds the cells of benchmarks/quality.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in cards(results).items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def cards(results: Path) -> dict[str, str]:
    """The text of every card by file stem, the index as README."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    texts = {name: card(name, [cell for cell in cells if cell["method"]["name"] == name]) for name in METHODS}
    return texts | {"README": index()}


def card(name: str, cells: Sequence[Cell]) -> str:
    """One method's page; `cells` are its measured ones."""
    method = method_class(name)
    about = method.about
    sections = [
        f"# {name}",
        f"{about.title[0].upper()}{about.title[1:]}.",
        f"Paper: {about.paper}.",
        "## Idea and equations",
        _indented(sys.modules[method.__module__].__doc__ or ""),
        "## What a stage does",
        markdown_table(("", ""), _facts(method)),
        "## What it hands on",
        markdown_table(("in the stage's part", "shape"), about.state.items()),
        "## Hyper-parameters",
        markdown_table(("field", "default", "allowed", "meaning"), _fields(method)),
        *_settings(method),
        "## Differences from the paper and from the released code",
        "\n".join(f"- {line}" for line in about.differences) or "None known.",
        *_measured(cells),
        *_borrowed(tables_of(name)),
    ]
    return "\n\n".join(sections) + "\n"


def index() -> str:
    """The list of all methods as a page."""
    head = ("method", "idea", "paper", "trains", "growth of the state", "task id at test", "replays")
    rows = ([f"[{row[0]}]({row[0]}.md)", *row[1:]] for row in listing())
    return "\n\n".join(["# Methods", markdown_table(head, rows), LEFT_OUT]) + "\n"


LEFT_OUT = """Made by `raycl cards`; a test checks that these pages are current.

Left out on purpose, with the reason:

- `rec_adam` (RecAdam) changes the optimizer's own step (a decoupled pull towards the old weights). DeepSpeed's ZeRO
  optimizers own that step, so it would hold at ZeRO 0 only.
- EPI selects a classification head by Mahalanobis distance; raycl's tasks are text to text and have no heads.
- TaSL needs an order of skill units over the whole model that its paper leaves open for models without separate q, k, v
  projections; its figures in GainLoRA's tables could not be traced to settings."""


def listing() -> list[list[str]]:
    """Per method: name, idea, paper, trains, growth, task id at test, replays."""
    return [line(name) for name in METHODS]


def line(name: str) -> list[str]:
    """A method's line in `listing`. Raises ValueError for a method that is unknown or cannot be used."""
    method = method_class(name)
    about = method.about
    task_id = "yes" if method.needs_task_id else "no"
    return [name, about.title, about.paper, about.trains, about.growth, task_id, about.replays]


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")


def _indented(docstring: str) -> str:
    """A module's docstring as text, its equations kept in lines of their own."""
    return "```text\n" + docstring.strip() + "\n```"


def _facts(method: type[Method]) -> list[tuple[str, str]]:
    about = method.about
    params = method.Params.model_validate({"name": method.Params.model_fields["name"].default})
    return [
        ("trains", about.trains),
        ("frozen", about.frozen),
        ("penalised", about.penalised),
        ("projected", about.projected),
        ("growth of the state", about.growth),
        ("task id at test", "needed" if method.needs_task_id else "not needed"),
        ("examples of earlier tasks", about.replays),
        ("can be merged into the weights", "yes" if about.mergeable else "no"),
        ("the model as scored, without raycl", IN_PEFT[method.in_peft(params)]),
    ]


def _fields(method: type[Method]) -> list[tuple[str, str, str, str]]:
    fields: dict[str, FieldInfo] = method.Params.model_fields
    return [
        (f"`method.{name}`", f"`{info.default}`", kind_of(info), info.description or "")
        for name, info in fields.items()
        if name != "name"
    ]


def _settings(method: type[Method]) -> list[str]:
    """Published settings, where the method knows any."""
    places: dict[str, list[str]] = {}
    for family, order in SETTINGS:
        if values := method.settings(family, order):
            places.setdefault(json.dumps(values), []).append(f"{family} {order}")
    rows = [(", ".join(where), f"`{values}`") for values, where in places.items()]
    if not rows:
        return []
    return ["## Settings of the `paper` preset", markdown_table(("model family and order", "run-spec fields"), rows)]


def _measured(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return ["## Measured", "Not yet."]
    head = ("variant", "order", "seed", "lr", "AP", "FT", "numbers trained a stage", "new state a task, MB", "s a step")
    note = (
        "By `benchmarks/quality.py`: packaged 135M model on CPU, 200 training and 100 test examples a task. What it means "
        "and how far to trust it: [benchmarks/results/quality.md](../../benchmarks/results/quality.md)."
    )
    return ["## Measured", note, markdown_table(head, map(_measured_row, cells))]


def _measured_row(cell: Cell) -> list[Any]:
    stages = cell["stages"]
    steps = sum(stage["steps"] for stage in stages)
    return [
        cell["variant"],
        cell["order"],
        cell["seed"],
        f"{cell['lr']:g}",
        *(None if cell["measures"][name] is None else f"{cell['measures'][name]:.1f}" for name in ("AP", "FT")),
        f"{stages[-1]['trainable_parameters']:,}",
        f"{sum(stage['bytes'] for stage in stages) / len(stages) / 1e6:.2f}",
        f"{sum(stage['seconds']['train'] for stage in stages) / steps:.2f}",
    ]


def _borrowed(tables: Sequence[Borrowed]) -> list[str]:
    if not tables:
        return []
    sections = [
        "## Reference figures (borrowed)",
        "From papers, with other models, data and budgets; not made by raycl.",
    ]
    for table in tables:
        doubt = (
            " Taken from later papers and digests, not checked against the paper itself." if table.second_hand else ""
        )
        rows = [(name, *values) for name, values in table.rows.items()]
        sections += [f"{table.source}: {table.setting}.{doubt}", markdown_table(("row", *table.columns), rows)]
    return sections
