"""A finished state by name: the output folder of a run, or a stage of a store, as all that serving it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raycl.errors import SpecError, StoreError, first_line, shown
from raycl.fields import per_stage_fields
from raycl.files import Json, home, write_json
from raycl.methods.registry import method_class, method_params
from raycl.reading import read_text
from raycl.sections import TrainSpec
from raycl.sequence.plan import state_keys
from raycl.spec import RunSpec, parse
from raycl.state.keys import is_key
from raycl.state.manifest import Manifest
from raycl.state.store import Store
from raycl.tasks.orders import CUSTOM
from raycl.tasks.stream import NAME

SPEC, SUMMARY = "spec.json", "summary.json"
SHORTEST_PREFIX = 4
"""Digits of a stage's key that must be given at least."""


@dataclass(frozen=True)
class Head:
    """A state, the settings that it was made with, and the store that holds it."""

    name: str
    """What the user called it."""
    spec: RunSpec
    """Its `tasks` are those of `stages`; of a joint method all of them belong to the one stage."""
    stages: tuple[str, ...]
    """Keys of the stages, first to last."""
    store: Store
    records: Json
    """Task -> its data record, as far as it is known: how its prompts are laid out, its labels."""

    @property
    def last(self) -> str:
        """The key of the newest stage."""
        return self.stages[-1]

    @property
    def manifests(self) -> list[Manifest]:
        """Of the stages, first to last."""
        return [self.store.manifest(key) for key in self.stages]

    @property
    def needs_task(self) -> bool:
        """Whether the model is another one for each task, so that one must be named."""
        return method_class(self.spec.method.name).needs_task_id

    def after(self, stage: int) -> Head:
        """The state as it was after a stage, 1-based, with the settings up to there. Raises SpecError for no such stage."""
        if not 1 <= stage <= len(self.stages):
            raise SpecError(f"{self.name}@{stage}: has no such stage; allowed: {self.name}@1 to @{len(self.stages)}")
        if stage == len(self.stages):
            return replace(self, name=f"{self.name}@{stage}")
        tasks = self.spec.tasks[:stage]
        spec = with_tasks(self.spec, tasks, range(stage))
        records = {task: record for task, record in self.records.items() if task in tasks}
        return Head(f"{self.name}@{stage}", spec, self.stages[:stage], self.store, records)

    def keys(self, task: str | None = None) -> tuple[str, ...]:
        """The stages that make up what is served; `task` is whose inputs come, where the method must be told.

        Raises SpecError for a task that was not trained, and for none where the method needs one.
        """
        if not self.needs_task:
            return state_keys(self.spec, self.stages)
        if task not in self.spec.tasks:
            raise SpecError(
                f"task: {shown(task)} is none of {self.name}; allowed: {', '.join(self.spec.tasks)}; the method "
                f"{self.spec.method.name} is told whose inputs come, so name one with --task"
            )
        return (self.stages[self.spec.tasks.index(task)],)

    @property
    def model_fingerprint(self) -> str:
        """The fingerprint of the base model that the stages were trained on."""
        return str(self.store.manifest(self.last).recipe["model"]["fingerprint"])


def find_head(what: str, store: str | None = None, allow_code: bool = False) -> Head:
    """The state that `what` names: a tag, a run's output folder or its name in `~/.raycl/runs`, a stage's key or its start.
    With `@N` behind it, the same after its N-th stage.

    Metrics of its stream that are Python code run only if `allow_code` says so, whatever the run allowed.

    `store` is where the stages are, none = where the run put them, or `~/.raycl/store`. Raises SpecError for what is none of
    these, StoreError for stages that are not there.
    """
    name, _, stage = what.rpartition("@")
    if name and stage.isdecimal() and not _is_named(what):
        return find_head(name, store, allow_code).after(int(stage))
    if _is_tag(what):
        return head_of_note(tag_path(what), store, allow_code, what)
    for folder in _folders(what):
        if (folder / SPEC).is_file():
            summary = folder / SUMMARY
            return _allowing(_of_facts(what, _read(folder / SPEC), _read(summary), str(summary), store), allow_code)
    return _by_key(what, Store(store or str(home() / "store")))


def head_of_note(note: Path, store: str | None = None, allow_code: bool = False, name: str | None = None) -> Head:
    """The state that a note names, as `tag` and MLflow models hold it; the rest as in `find_head`.

    `name` is what the user called it, none = the note's path.
    """
    facts = _read(note)
    return _allowing(_of_facts(name or str(note), facts.get("spec"), facts, str(note), store), allow_code)


def noted_stages() -> set[str]:
    """The keys of all stages that a tag or a run under raycl's home names. Raises SpecError for a note that is damaged."""
    notes = [*(home() / "heads").glob("*.json"), *(home() / "runs").glob(f"*/{SUMMARY}")]
    return {key for note in notes for key in _read(note).get("stage_keys") or [] if is_key(key)}


def runs_with(keys: Collection[str]) -> list[Path]:
    """The output folders under raycl's home of the runs that a stage of these belongs to."""
    found = []
    for note in sorted((home() / "runs").glob(f"*/{SUMMARY}")):
        try:
            named = _read(note).get("stage_keys") or []
        except SpecError:
            continue
        if set(keys) & set(named) and (note.parent / SPEC).is_file():
            found.append(note.parent)
    return found


def _folders(what: str) -> tuple[Path, Path]:
    """Where a run of that name may have left its files."""
    return Path(what).expanduser(), home() / "runs" / what


def _is_named(what: str) -> bool:
    """Whether a tag or a run has this very name."""
    return _is_tag(what) or any((folder / SPEC).is_file() for folder in _folders(what))


def _by_key(what: str, opened: Store) -> Head:
    """The state after the stage whose key begins so."""
    found = [key for key in opened.stage_keys() if key.startswith(what)] if opened.exists() else []
    if len(what) >= SHORTEST_PREFIX and len(found) == 1:
        return _of_stage(what, found[0], opened)
    runs = sorted(path.parent.name for path in (home() / "runs").glob(f"*/{SPEC}"))
    last = ", ".join(runs[-5:]) if runs else "none yet"
    raise SpecError(
        f"{shown(what)}: no run and no stage of that name ({len(found)} stages of {opened.uri} begin so); allowed: "
        f"the output "
        f"folder of a run, its name under {home() / 'runs'} (the last ones: {last}), or a stage's key; next step: see "
        "`raycl store ls`"
    )


def _allowing(head: Head, code: bool) -> Head:
    """The same, and whether code of its stream may run: a run's folder may come from somebody else."""
    data = head.spec.data.model_copy(update={"allow_code": code})
    return replace(head, spec=head.spec.model_copy(update={"data": data}))


def _is_tag(what: str) -> bool:
    """Whether a state was given this name; a path is never one."""
    return bool(re.fullmatch(NAME, what)) and tag_path(what).is_file()


def tag_path(name: str) -> Path:
    """Where the state with a name of the user's is noted."""
    return home() / "heads" / f"{name}.json"


def _of_facts(what: str, values: Any, summary: Json, where: str, store: str | None) -> Head:
    """The state that a run ended with, or that was tagged; `where` its facts were read."""
    spec = parse(values, method_params)
    stages = summary.get("stage_keys")
    if not isinstance(stages, list) or not stages or not all(map(is_key, stages)):
        raise SpecError(f"{where}: names no stages; next step: run the same `raycl run` again, which writes it anew")
    opened = Store(store or str(summary.get("store") or home() / "store"))
    if missing := [key for key in stages if not opened.exists() or not opened.has(key)]:
        raise StoreError(
            f"{opened.uri}: has no stage {missing[0][:12]} of {what}; next step: name the run's store with --store"
        )
    return Head(what, spec, tuple(stages), opened, summary.get("data", {}))


def _of_stage(what: str, key: str, store: Store) -> Head:
    """The state after a stage: its chain, with the settings of its recipe."""
    chain = [store.manifest(one) for one in store.lineage(key)]
    recipe, runtime = chain[-1].recipe, chain[-1].runtime
    model = {name: value for name, value in recipe["model"].items() if name != "fingerprint"}
    method = {name: value for name, value in recipe["method"].items() if name not in ("version", "source")}
    tasks = [one.task for one in chain]
    values = {
        "order": CUSTOM + ",".join(tasks),
        "tasks": tasks,
        "model": model | {"name": runtime.get("model", {}).get("name", "packaged")},
        "data": {f"max_{side}_tokens": count for side, count in recipe["lengths"].items()},
        "method": method,
        "seed": recipe.get("seed", 0),
        "imported": {one.task: one.recipe["imported"] for one in chain if "imported" in one.recipe},
    }
    return Head(what, parse(values, method_params), tuple(one.key for one in chain), store, {})


def _read(path: Path) -> Json:
    try:
        found = json.loads(read_text(path))
        if isinstance(found, dict):
            return found
        why = f"it holds a {type(found).__name__}, not an object"
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
    raise SpecError(f"{path}: cannot be read ({why}); next step: give the folder of a finished run")


def with_tasks(spec: RunSpec, tasks: Sequence[str], places: Sequence[int]) -> RunSpec:
    """The spec for other tasks: of values per stage those at `places`, and for a task more the last one again."""
    values: dict[str, Any] = spec.model_dump(mode="json")
    per_stage = [("train", name) for name in per_stage_fields(TrainSpec)]
    per_stage += [("method", name) for name in spec.method.per_stage_fields()]
    for section, name in per_stage:
        column = values[section][name]
        if isinstance(column, list):
            kept = [column[place] for place in places]
            values[section][name] = kept + [column[-1]] * (len(tasks) - len(kept))
    imported = {task: key for task, key in spec.imported.items() if task in tasks}
    changed = {"order": CUSTOM + ",".join(tasks), "tasks": list(tasks), "imported": imported}
    return parse(values | changed, method_params)


def tag(head: Head, name: str) -> None:
    """Give a state a name, such as `production`; a name that is taken is moved. Raises SpecError for an odd name."""
    if not re.fullmatch(NAME, name) or (home() / "runs" / name).exists():
        raise SpecError(
            f"tag {shown(name)}: is the name of a run, or no name; allowed: letters, digits, `_`, `.` and `-`"
        )
    path = tag_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = head.spec.model_dump(mode="json")
    write_json(path, {"spec": spec, "stage_keys": list(head.stages), "store": head.store.uri, "data": head.records})
