"""The grid of a comparison: methods x orders x seeds, each cell a sequence with its spec and plan. Knows no Ray.

A cell whose settings, data or model do not fit is a failed cell with its message; the others stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from pydantic import Field, ValidationError

from raycl.errors import SpecError, UserError, did_you_mean, is_name, name_rule, one_message, problems, shown
from raycl.fields import Strict
from raycl.files import Json
from raycl.methods.registry import is_known, method_params, short_name
from raycl.presets import merge, parse_override
from raycl.sequence.history import Missing
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.resolve import order_of, resolve
from raycl.spec import RunSpec
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.tasks.orders import order_title
from raycl.tasks.task import Task

BOUNDS = ("per_task", "mtl", "sin_lora")
"""What every table can be read against: a model of its own for each task, all data at once, and no guard at all."""
OUTSIDE = re.compile(r"(?:(?P<label>[^:]*)=)?(?P<name>[^:=,]+:[^:=,]+)(?:(?P<colon>:)(?P<rest>.*))?", re.DOTALL)
"""An entry whose method is a class: `[LABEL=]package.module:Class[:FIELD=VALUE,...]`."""
LONGEST_LABEL = 60
"""Characters of a label: it stands in tables, in file names and in names of MLflow's metrics."""
LONGEST_DEFAULT = 200
"""Characters of an entry that is its own label."""
OUTSIDE_BRACKETS = re.compile(r",(?![^\[{]*[\]}])")


class GridSpec(Strict):
    """What is compared."""

    methods: list[str] = Field(description="`[LABEL=]NAME[:FIELD=VALUE,...]`, NAME as `raycl run --method`")
    orders: list[str] = Field([], description="ids of task orders; none = the stream's default, or demo")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], description="seeds of initialisation, data order and dropout", min_length=1
    )
    bounds: bool = Field(False, description="add per_task, mtl and sin_lora where they are not among the methods")
    preset: str = Field("auto", description="laptop | paper | auto")
    settings: Json = Field({}, description="run-spec fields that all sequences share; a method's own settings win")
    overrides: Json = Field({}, description="run-spec fields that win over all others")


def grid_of(
    layers: Sequence[Json], named: Mapping[str, Sequence[Any] | None], bounds: bool = False, preset: str = "auto"
) -> GridSpec:
    """The grid of a command line: its `layers` as `make_layers` orders them (file, flags, --set), and the values of the
    flags that may be repeated: methods, orders, seeds (none = not given).

    As everywhere --set wins over flags and flags win over the file. Raises SpecError that lists every problem.
    """
    file, flags, sets = (dict(layer) for layer in layers)
    values: Json = {"methods": named.get("methods") or [], "bounds": bounds, "preset": preset}
    for several, field in (("orders", "order"), ("seeds", "seed")):
        in_file, in_sets = file.pop(field, None), sets.pop(field, None)
        chosen = [in_sets] if in_sets is not None else named.get(several) or ([] if in_file is None else [in_file])
        if chosen:
            values[several] = [str(one) for one in chosen] if field == "order" else list(chosen)
    settings = merge(file, flags)
    for layer in (settings, sets):
        layer.pop("workers", None)
    return make_grid_spec(values | {"settings": settings, "overrides": sets})


def make_grid_spec(values: Json) -> GridSpec:
    """Validate; raises SpecError that lists every problem."""
    try:
        return GridSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(one_message("the comparison", problems(error), "See `raycl compare --help`.")) from None


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method with its settings."""

    label: str
    layer: Json
    """Run-spec fields of its own, the method's name among them."""
    bound: bool = False
    """Added to be read against, not to be ranked."""

    @property
    def method(self) -> str:
        """The method's name."""
        return self.layer["method"]["name"]


@dataclass
class GridCell:
    """One sequence of the comparison: an entry under one order and one seed."""

    entry: Entry
    order: str
    seed: int
    job: SequenceJob | None = None
    """What to run; none = it cannot run."""
    error: str | None = None
    """Why it failed."""
    trace: str | None = None
    """Where, for an error that is no user's."""

    @property
    def name(self) -> str:
        """How it is called in lines of text."""
        return f"{self.entry.label}  {order_title(self.order)}  seed {self.seed}"

    def missing(self) -> Missing:
        """What the store lacks of it."""
        return Missing.of(self.job.plan, self.job.store) if self.job else Missing()


def parse_entry(text: str) -> Entry:
    """`gain_lora:over=inf_lora,epsilon=0.99` as an entry; a label of one's own stands before: `gain=gain_lora:over=...`.

    The name may be a class, `package.module:Class:FIELD=VALUE,...`, which is then called Class unless it has a label.
    Fields are the method's; `train.lr=1e-3` and other dotted names are the run spec's. Raises SpecError.
    """
    head, colon, rest = text.partition(":")
    label, labelled, name = head.rpartition("=")
    outside = OUTSIDE.fullmatch(text)
    if outside and not is_known(name.strip()):
        label, name, colon, rest = (outside[part] or "" for part in ("label", "name", "colon", "rest"))
        labelled = "" if outside["label"] is None else "="
    if not name.strip() or (colon and not rest.strip()):
        raise SpecError(
            f"--method {shown(text)}: expected NAME or NAME:FIELD=VALUE,..., such as gain_lora:over=inf_lora"
        )
    layers: list[Json] = []
    for part in OUTSIDE_BRACKETS.split(rest) if rest else []:
        place = part.partition("=")[0].strip()
        if "=" not in part or not place:
            raise SpecError(f"--method {shown(text)}: {shown(part)} is not FIELD=VALUE; lists are written [1, 2]")
        layers.append(parse_override(part.strip() if "." in place else f"method.{part.strip()}"))
    default = f"{short_name(name.strip())}{colon}{rest}".strip()
    if labelled and not is_name(label.strip(), LONGEST_LABEL):
        raise SpecError(f"--method {shown(text)}: the label {shown(label)}; allowed: {name_rule(LONGEST_LABEL)}")
    if not labelled and not is_name(default.replace("/", " "), LONGEST_DEFAULT):
        raise SpecError(
            f"--method {shown(text)}: is too long or too odd to be its own name; next step: give it a label, LABEL=NAME:..."
        )
    return Entry(label.strip() if labelled else default, merge(*layers, {"method": {"name": name.strip()}}))


def make_entries(grid: GridSpec) -> list[Entry]:
    """The lines of the table in the order given, then the bounds. Raises SpecError for none, or for a label twice."""
    entries = [parse_entry(text) for text in grid.methods]
    if not entries and not grid.bounds:
        raise SpecError(
            "--method: name at least one method to compare, such as --method o_lora --method gain_lora; "
            "`raycl methods` lists them"
        )
    named = {entry.method for entry in entries if entry.layer == {"method": {"name": entry.method}}}
    if grid.bounds:
        entries += [Entry(name, {"method": {"name": name}}, True) for name in BOUNDS if name not in named]
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SpecError(
            f"--method: {', '.join(twice)} stands twice; give each its own label: LABEL=NAME:FIELD=VALUE,..."
        )
    return entries


def make_grid(grid: GridSpec, gpus: int, store: Store) -> list[GridCell]:
    """All cells, planned; pairs of order and seed outermost, so that what is finished first can be compared.

    Raises SpecError for what is wrong with the grid itself, and the cells' own error if none of them can run.
    """
    entries = make_entries(grid)
    stream = {"data": merge(grid.settings, grid.overrides).get("data", {})}
    said = [stream | {"order": order} for order in grid.orders] or [stream]
    orders = _distinct("--order", [order_of(one)[0] for one in said])
    seeds = _distinct("--seed", grid.seeds)
    shared = _shared_settings(grid.settings, entries)
    overrides = _shared_settings(grid.overrides, entries)
    planner = _Planner(grid.preset, gpus, store)
    cells = [GridCell(entry, order, seed) for order, seed, entry in product(orders, seeds, entries)]
    for cell in cells:
        label = cell.entry.label
        planner.plan(
            cell, [shared[label], {"order": cell.order, "seed": cell.seed}, cell.entry.layer, overrides[label]]
        )
    problems = {cell.error for cell in cells}
    if len(problems) == 1 and None not in problems:
        raise SpecError(f"no sequence of the comparison can run. {problems.pop()}")
    return cells


def _distinct(flag: str, values: Sequence[Any]) -> list[Any]:
    """The values, none twice: a pair counted twice would pass for evidence."""
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise SpecError(f"{flag}: {', '.join(twice)} stands twice; name each once")
    return list(values)


def _shared_settings(settings: Json, entries: Sequence[Entry]) -> dict[str, Json]:
    """The shared settings by label. Of `method`, each entry gets the fields that its method knows.

    Raises SpecError for a field that no method knows.
    """
    said = settings.get("method", {})
    if not isinstance(said, dict):
        raise SpecError(
            f"method: {shown(said)} is no mapping of settings; methods are named by --method NAME, their settings by "
            "--set method.FIELD=VALUE"
        )
    method = {name: value for name, value in said.items() if name != "name"}
    known: dict[str, set[str]] = {}
    for entry in entries:
        try:
            known[entry.label] = set(method_params(entry.method).model_fields)
        except ValueError:
            known[entry.label] = set()  # its cells report the name
    strange = sorted(set(map(str, method)) - set().union(*known.values()))
    if strange:
        near = did_you_mean(strange[0], set().union(*known.values()))
        raise SpecError(
            f"method.{', method.'.join(map(str, strange))}: no method of the comparison has such a field{near}; "
            "`raycl fields METHOD` lists those of a method"
        )
    rest = {name: value for name, value in settings.items() if name != "method"}
    return {
        label: rest | {"method": {name: value for name, value in method.items() if name in fields}}
        for label, fields in known.items()
    }


class _Planner:
    """Plans cells; data are read once for all cells that share them."""

    def __init__(self, preset: str, gpus: int, store: Store) -> None:
        self._preset, self._gpus, self._store = preset, gpus, store
        self._tasks: dict[str, list[Task]] = {}

    def plan(self, cell: GridCell, layers: list[Json]) -> None:
        """Give the cell its job, or its error."""
        try:
            spec = resolve(self._preset, layers, self._gpus)
            cell.job = make_job(spec, self._store, self._load(spec))
        except UserError as error:
            cell.error = str(error)

    def _load(self, spec: RunSpec) -> list[Task]:
        known = f"{spec.tasks} {spec.data.model_dump_json()}"
        if known not in self._tasks:
            self._tasks[known] = load_tasks(spec.tasks, spec.data)
        return self._tasks[known]
