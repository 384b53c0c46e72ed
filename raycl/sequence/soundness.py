"""Whether a stage is sound, as far as numbers tell: what is said of it, and what follows (`train.health`)."""

from __future__ import annotations

from collections.abc import Sequence

from raycl.analysis.health import signs, training_signs
from raycl.errors import DivergedError
from raycl.sections import TrainSpec
from raycl.sequence.plan import Cell, Plan, StagePlan
from raycl.state.stage_state import StagePart
from raycl.state.store import Store
from raycl.tasks.task import Task
from raycl.train.generation import Scored
from raycl.train.stage import StageRun


def signs_of_training(run: StageRun, part: StagePart) -> tuple[str, ...]:
    """What there is to say of the training that gave `part`."""
    branches = [*run.state.branches, *([part.branch] if part.branch else [])]
    lengths = [branch.length for branch in branches] if part.branch else []
    return tuple(training_signs(run.log, len(run.model.tokenizer), lengths))


def signs_of_answers(plan: Plan, cell: Cell, task: Task, scored: Scored) -> tuple[str, ...]:
    """What there is to say of a task's score right after its own stage; nothing of any other cell."""
    if not _is_own(plan, cell):
        return ()
    answers = [example.answers for example in task.test]
    return tuple(signs(scored.score, answers, task.labels, scored.ended))


def stored_signs(store: Store, plan: Plan, stage: StagePlan) -> list[str]:
    """What was said of a stage that is stored, and of its task's score."""
    cells = [cell for cell in plan.cells_of(stage.row) if _is_own(plan, cell) and store.has_scores(cell.key)]
    return [
        *store.manifest(stage.key).end.health,
        *(sign for cell in cells for sign in store.read_scores(cell.key).get("health", ())),
    ]


def require_sound(found: Sequence[str], stage: StagePlan, train: TrainSpec, stored: bool) -> None:
    """Raises DivergedError for signs where they end a run; `stored` says whether the stage is in the store."""
    if found and train.health == "fail":
        kept = "it is stored" if stored else "nothing of it is stored but its last mid-stage checkpoint, if it has one"
        raise DivergedError(
            f"stage {stage.stage} ({stage.task}): {'; '.join(found)}. train.health=fail ends the run here, and {kept}; next "
            "step: change what is named, or go on as it is with --set train.health=warn"
        )


def _is_own(plan: Plan, cell: Cell) -> bool:
    """Whether a cell is that of a task right after its own stage."""
    return 0 < cell.stage <= len(plan.stages) and plan.stages[cell.stage - 1].task == cell.task
