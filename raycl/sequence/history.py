"""What the store holds of a sequence, as the events that its making reported. The one place that replays a store."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.routing import routing_of
from raycl.events import Routing, Scored, StageEnd
from raycl.files import Json
from raycl.sequence.plan import Plan, StagePlan
from raycl.state.store import Store


@dataclass(frozen=True)
class Missing:
    """What the store lacks of a plan."""

    stages: frozenset[int] = frozenset()
    """Stages by number."""
    cells: frozenset[str] = frozenset()
    """Cells by key, those of `Plan.own` among them."""

    @classmethod
    def of(cls, plan: Plan, store: Store) -> Missing:
        """Look every key up."""
        return cls(
            frozenset(stage.stage for stage in plan.stages if not store.has(stage.key)),
            frozenset(cell.key for cell in [*plan.cells, *plan.own] if not store.has_scores(cell.key)),
        )

    def __bool__(self) -> bool:
        return bool(self.stages or self.cells)


def stored_stage(store: Store, stage: StagePlan, cached: bool = True) -> StageEnd:
    """The end of a stored stage with the steps of its training; `cached` = it was there before this run."""
    manifest = store.manifest(stage.key)
    # A stage that depends on no other, and a joint one, may stand elsewhere in the sequence that made it.
    steps = tuple(replace(step, stage=stage.stage) for step in manifest.steps)
    return replace(manifest.end, stage=stage.stage, cached=cached, log=steps)


def in_store(store: Store) -> str:
    """What a run that ended before its time leaves, for people."""
    return f"{len(store.stage_keys())} stages are in {store.uri} and stay"


def scored_of(record: Json, row: int, seen: bool) -> Scored:
    """The event of a stored score in a row; the same key may stand in several."""
    return Scored(stage=row, seen=seen, **{**record, "health": tuple(record.get("health", ()))})


def stored_scores(store: Store, plan: Plan, row: int) -> list[Scored]:
    """The cells of a row that are stored; the same key may fill cells of several rows."""
    return [
        scored_of(store.read_scores(cell.key), row, cell.seen)
        for cell in plan.cells_of(row)
        if store.has_scores(cell.key)
    ]


def stored_routing(store: Store, plan: Plan, row: int) -> Routing:
    """Whose weights answered in a stored row, compared with what is stored of the row before.

    Raises KeyError if its method does not route.
    """

    def predictions(row: int) -> dict[str, list[Json]]:
        cells = [cell for cell in plan.cells_of(row) if cell.seen and store.has_scores(cell.key)]
        return {cell.task: store.read_predictions(cell.key) for cell in cells}

    own = [cell for cell in plan.own if cell.stage <= row and store.has_scores(cell.key)]
    scores = {cell.task: float(store.read_scores(cell.key)["score"]) for cell in own}
    return routing_of(predictions(row), predictions(row - 1), scores)


def stored_seconds(store: Store, plan: Plan) -> dict[int, float]:
    """Row -> seconds that its stored cells took; a score that fills several cells counts once, in its first row."""
    first = {cell.key: cell.stage for cell in reversed([*plan.cells, *plan.own])}
    found: dict[int, float] = {}
    for key, row in first.items():
        if store.has_scores(key):
            found[row] = found.get(row, 0.0) + float(store.read_scores(key)["seconds"])
    return found


def stored_matrix(store: Store, plan: Plan, tasks: list[str]) -> AccuracyMatrix:
    """The accuracy matrix as far as the store holds it."""
    rows = dict.fromkeys(cell.stage for cell in plan.cells)
    return AccuracyMatrix.from_events(tasks, (scored for row in rows for scored in stored_scores(store, plan, row)))
