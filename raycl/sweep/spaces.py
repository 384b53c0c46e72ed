"""Search spaces: a Python file that names the fields of the run spec to vary, read into dimensions, and points in them.

    SPACE = {"method.rank": [4, 8], "method.l1": per_stage([1e-5, 1e-3]), "train.lr": tune.loguniform(1e-5, 1e-2)}
    BASE = {"method.name": "am_lora"}                                     fields that stay, optional
    FIRST = [{"method.rank": 8, "method.l1": 1e-5, "train.lr": 1e-4}]     points to try first, optional

Ray is not imported here: whatever has a `sample` method is a sampler.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from raycl.errors import SpecError, shown
from raycl.files import Json
from raycl.presets import merge

Point = dict[str, Any]
"""Dimension -> value. A field that is chosen per stage has one dimension per stage, `method.l1[2]`."""
Search = Literal["grid", "random", "optuna"]
FIXED = ("order", "tasks", "data", "workers", "preset")
"""Fields that are the same in all trials of a sweep: they decide which stages there are, and on what."""
LARGEST_GRID = 20_000
"""Trials of the largest grid; a tree of 3 values over 9 stages has 19,683."""
DRAWS = 200
"""Tries per trial to draw a point that is not drawn yet."""


@dataclass(frozen=True)
class PerStage:
    """One choice among `values` at every stage."""

    values: Sequence[Any]


def per_stage(values: Sequence[Any]) -> PerStage:
    """A field whose value is chosen anew at every stage: trials that differ from stage t on share the stages before t."""
    return PerStage(values)


@dataclass(frozen=True)
class Space:
    """A search space for an order with a known number of stages."""

    path: str
    dimensions: dict[str, Any]
    """Dimension -> list of values, or a sampler."""
    base: Json
    """The fixed fields, as a layer of a run spec."""
    first: list[Point]
    """Points to try first."""

    @property
    def size(self) -> int | None:
        """Number of points of the grid; none if a dimension is drawn from a range."""
        values = list(self.dimensions.values())
        return math.prod(map(len, values)) if all(isinstance(one, list) for one in values) else None

    def grid(self) -> list[Point]:
        """Every combination, those of FIRST in front. Raises SpecError if there is no grid, or too large a one."""
        if self.size is None:
            drawn = [name for name, values in self.dimensions.items() if not isinstance(values, list)]
            raise SpecError(
                f"--search grid: {', '.join(drawn)} in {self.path} is a range; list values, or search random"
            )
        if self.size > LARGEST_GRID:
            raise SpecError(
                f"--search grid: {self.path} has {self.size:,} points, at most {LARGEST_GRID:,} are allowed; "
                "use --search random or optuna with --trials"
            )
        points = [
            dict(zip(self.dimensions, values, strict=True)) for values in itertools.product(*self.dimensions.values())
        ]
        return _distinct([*self.first, *points])

    def draw(self, trials: int, seed: int) -> list[Point]:
        """Distinct random points, those of FIRST in front; fewer than `trials` if the space has no more."""
        random = np.random.RandomState(seed)
        points = _distinct(self.first)[:trials]
        seen = {_text(point) for point in points}
        wanted = trials if self.size is None else min(trials, self.size)
        for _ in range(DRAWS * trials):
            if len(points) >= wanted:
                break
            point = {name: _draw(values, random) for name, values in self.dimensions.items()}
            if _text(point) not in seen:
                seen.add(_text(point))
                points.append(point)
        return points

    def samples(self) -> list[Point]:
        """Points that between them hold every listed value at least once: what is validated before a search."""
        random = np.random.RandomState(0)
        start = self.first[0] if self.first else {name: _draw(v, random) for name, v in self.dimensions.items()}
        lists = {name: values for name, values in self.dimensions.items() if isinstance(values, list)}
        return _distinct([*self.first, start, *(start | {name: v} for name, vs in lists.items() for v in vs)])

    def encode(self, point: Point) -> Point:
        """Listed values as JSON text, which every search algorithm takes for a category; numbers of ranges as they are."""
        listed = {name for name, values in self.dimensions.items() if isinstance(values, list)}
        return {name: json.dumps(value) if name in listed else value for name, value in point.items()}


def layer(point: Mapping[str, Any]) -> Json:
    """A point as a layer of a run spec: dotted names nested, the choices per stage gathered into lists."""
    return nested(gathered(point))


def gathered(point: Mapping[str, Any]) -> Json:
    """A point by field: what is chosen per stage is one list."""
    fields: Json = {}
    for name, value in point.items():
        field, bracket, _ = name.partition("[")
        if bracket:
            fields.setdefault(field, []).append(value)
        else:
            fields[field] = value
    return fields


def nested(fields: Mapping[str, Any]) -> Json:
    """{"method.rank": 8} as {"method": {"rank": 8}}."""
    layers: list[Json] = []
    for name, value in fields.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        layers.append(value)
    return merge(*layers)


def decode(point: Mapping[str, Any]) -> Point:
    """The inverse of `Space.encode`."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in point.items()}


def load_space(path: str, stages: int) -> Space:
    """Run a space file and check what it holds. Raises SpecError that names the file, the field and what is allowed."""
    module = _run(path)
    where = f"--space {path}"
    space = _mapping(getattr(module, "SPACE", None), f"{where}: SPACE")
    if not space:
        raise SpecError(
            f'{where}: SPACE is missing or empty; it maps fields to values: SPACE = {{"method.rank": [4, 8]}}'
        )
    base = _mapping(getattr(module, "BASE", {}), f"{where}: BASE")
    for name in space:
        if name.partition(".")[0] in FIXED:
            raise SpecError(
                f"{where}: SPACE[{shown(name)}] is the same in all trials of a sweep; set it by a flag or --set"
            )
    if both := sorted(set(space) & set(base)):
        raise SpecError(f"{where}: {', '.join(both)} is in SPACE and in BASE; keep one of them")
    dimensions: dict[str, Any] = {}
    for name, values in space.items():
        dimensions |= _dimensions(name, values, stages, f"{where}: SPACE[{shown(name)}]")
    first = getattr(module, "FIRST", [])
    if not isinstance(first, (list, tuple)):
        raise SpecError(f"{where}: FIRST: expected a list of points, found {type(first).__name__}")
    points = [_first(point, space, dimensions, stages, f"{where}: FIRST[{i}]") for i, point in enumerate(first)]
    return Space(path, dimensions, nested(_plain(base, f"{where}: BASE")), points)


def _run(path: str) -> ModuleType:
    """The module of a space file, which is the user's own program."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise SpecError(
            f"--space {path}: no such Python file; give one like tune_spaces/gain_gate.py, or one of your own"
        )
    found = importlib.util.spec_from_file_location(f"space_{file.stem}", file)
    if found is None or found.loader is None:
        raise SpecError(f"--space {path}: cannot be read as a Python file")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise SpecError(f"--space {path}: running the file failed: {type(error).__name__}: {error}") from error
    return module


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise SpecError(f"{where}: expected a mapping from fields such as 'method.rank', found {shown(value)}")
    return value


def _dimensions(name: str, values: Any, stages: int, where: str) -> dict[str, Any]:
    """The dimensions of one field of SPACE."""
    if isinstance(values, PerStage):
        choices = _choices(values.values, where)
        return {f"{name}[{stage}]": choices for stage in range(1, stages + 1)}
    values = getattr(values, "categories", values)  # Tune's `choice` is a list of values
    return {name: values if callable(getattr(values, "sample", None)) else _choices(values, where)}


def _choices(values: Any, where: str) -> list[Any]:
    """A list of distinct plain values."""
    if not isinstance(values, (list, tuple)) or not values:
        raise SpecError(
            f"{where}: expected a list of values, per_stage([...]) or a Tune sampler, found {shown(values)}"
        )
    plain = _plain(list(values), where)
    if len({_text(value) for value in plain}) != len(plain):
        raise SpecError(f"{where}: a value stands twice in {shown(values)}")
    return plain


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON holds it: lists for tuples, nothing but plain data."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: values must be numbers, texts, lists or none ({error})") from None


def _first(point: Any, space: Json, dimensions: Json, stages: int, where: str) -> Point:
    """A point of FIRST; a field chosen per stage has one value for all stages, or a list with one per stage."""
    point = _mapping(point, where)
    if set(point) != set(space):
        raise SpecError(f"{where}: a point names every field of SPACE and no other: {', '.join(space)}")
    values: Point = {}
    for name, value in point.items():
        names = [one for one in dimensions if one == name or one.startswith(f"{name}[")]
        several = isinstance(space[name], PerStage) and isinstance(value, (list, tuple))
        if several and len(value) != stages:
            raise SpecError(f"{where}: {name}: {len(value)} values; allowed: one value, or {stages} (one per stage)")
        for one, chosen in zip(names, value if several else [value] * len(names), strict=True):
            values[one] = _member(chosen, dimensions[one], f"{where}: {name}")
    return {name: values[name] for name in dimensions}


def _member(value: Any, values: Any, where: str) -> Any:
    """`value` as a member of a dimension."""
    if isinstance(values, list):
        value = _plain(value, where)
        if value not in values:
            raise SpecError(f"{where}: {shown(value)} is not among SPACE's values {shown(values)}")
        return value
    if not values.is_valid(value):
        raise SpecError(f"{where}: {value!r} is outside SPACE's range {values.domain_str}")
    return value


def _draw(values: Any, random: np.random.RandomState) -> Any:
    """One value of a dimension."""
    if isinstance(values, list):
        return values[random.randint(len(values))]
    value = values.sample(random_state=random)
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _distinct(points: Sequence[Point]) -> list[Point]:
    return list({_text(point): point for point in points}.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
