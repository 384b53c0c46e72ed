"""A finished state by name: the output folder of a run, or a stage of a store, as all that serving it takes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raycl.errors import SpecError, StoreError
from raycl.files import Json, home, write_json
from raycl.methods.registry import method_class, method_params
from raycl.sequence.plan import state_keys
from raycl.spec import RunSpec, parse
from raycl.state.manifest import Manifest
from raycl.state.store import Store
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

    def keys(self, task: str | None = None) -> tuple[str, ...]:
        """The stages that make up what is served; `task` is whose inputs come, where the method must be told.

        Raises SpecError for a task that was not trained, and for none where the method needs one.
        """
        if not self.needs_task:
            return state_keys(self.spec, self.stages)
        if task not in self.spec.tasks:
            raise SpecError(
                f"task: {task!r} is none of {self.name}; allowed: {', '.join(self.spec.tasks)}; the method "
                f"{self.spec.method.name} is told whose inputs come, so name one with --task"
            )
        return (self.stages[self.spec.tasks.index(task)],)

    @property
    def model_fingerprint(self) -> str:
        """The fingerprint of the base model that the stages were trained on."""
        return str(self.store.manifest(self.last).recipe["model"]["fingerprint"])


def find_head(what: str, store: str | None = None, allow_code: bool = False) -> Head:
    """The state that `what` names: a tag, a run's output folder or its name in `~/.raycl/runs`, a stage's key or its start.

    Metrics of its stream that are Python code run only if `allow_code` says so, whatever the run allowed.

    `store` is where the stages are, none = where the run put them, or `~/.raycl/store`. Raises SpecError for what is none of
    these, StoreError for stages that are not there.
    """
    if tag_path(what).is_file():
        facts = _read(tag_path(what))
        return _allowing(_of_facts(what, facts["spec"], facts, str(tag_path(what)), store), allow_code)
    for folder in (Path(what).expanduser(), home() / "runs" / what):
        if (folder / SPEC).is_file():
            summary = folder / SUMMARY
            return _allowing(_of_facts(what, _read(folder / SPEC), _read(summary), str(summary), store), allow_code)
    opened = Store(store or str(home() / "store"))
    found = [key for key in opened.stage_keys() if key.startswith(what)] if opened.exists() else []
    if len(what) >= SHORTEST_PREFIX and len(found) == 1:
        return _of_stage(what, found[0], opened)
    runs = sorted(path.parent.name for path in (home() / "runs").glob(f"*/{SPEC}"))
    shown = ", ".join(runs[-5:]) if runs else "none yet"
    raise SpecError(
        f"{what!r}: no run and no stage of that name ({len(found)} stages of {opened.uri} begin so); allowed: the output "
        f"folder of a run, its name under {home() / 'runs'} (the last ones: {shown}), or a stage's key; next step: see "
        "`raycl store ls`"
    )


def _allowing(head: Head, code: bool) -> Head:
    """The same, and whether code of its stream may run: a run's folder may come from somebody else."""
    data = head.spec.data.model_copy(update={"allow_code": code})
    return replace(head, spec=head.spec.model_copy(update={"data": data}))


def tag_path(name: str) -> Path:
    """Where the state with a name of the user's is noted."""
    return home() / "heads" / f"{name.replace('/', '-')}.json"


def _of_facts(what: str, values: Json, summary: Json, where: str, store: str | None) -> Head:
    """The state that a run ended with, or that was tagged; `where` its facts were read."""
    spec = parse(values, method_params)
    stages = tuple(summary.get("stage_keys", ()))
    if not stages:
        raise SpecError(f"{where}: names no stages; next step: run the same `raycl run` again, which writes it anew")
    opened = Store(store or str(summary.get("store") or home() / "store"))
    if missing := [key for key in stages if not opened.exists() or not opened.has(key)]:
        raise StoreError(
            f"{opened.uri}: has no stage {missing[0][:12]} of {what}; next step: name the run's store with --store"
        )
    return Head(what, spec, stages, opened, summary.get("data", {}))


def _of_stage(what: str, key: str, store: Store) -> Head:
    """The state after a stage: its chain, with the settings of its recipe."""
    chain = [store.manifest(one) for one in store.lineage(key)]
    recipe, runtime = chain[-1].recipe, chain[-1].runtime
    model = {name: value for name, value in recipe["model"].items() if name != "fingerprint"}
    method = {name: value for name, value in recipe["method"].items() if name not in ("version", "source")}
    tasks = [one.task for one in chain]
    values = {
        "order": f"custom:{','.join(tasks)}",
        "tasks": tasks,
        "model": model | {"name": runtime.get("model", {}).get("name", "packaged")},
        "data": {f"max_{side}_tokens": count for side, count in recipe["lengths"].items()},
        "method": method,
        "seed": recipe.get("seed", 0),
    }
    return Head(what, parse(values, method_params), tuple(one.key for one in chain), store, {})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = type(error).__name__
        raise SpecError(f"{path}: cannot be read ({why}); next step: give the folder of a finished run") from None


def tag(head: Head, name: str) -> None:
    """Give a state a name, such as `production`; a name that is taken is moved. Raises SpecError for an odd name."""
    if not re.fullmatch(NAME, name) or (home() / "runs" / name).exists():
        raise SpecError(f"tag {name!r}: is the name of a run, or no name; allowed: letters, digits, `_`, `.` and `-`")
    path = tag_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = head.spec.model_dump(mode="json")
    write_json(path, {"spec": spec, "stage_keys": list(head.stages), "store": head.store.uri, "data": head.records})
