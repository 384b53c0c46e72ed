"""What a run answered to the test examples of one task after one stage."""

from __future__ import annotations

from raycl.analysis.views import Given
from raycl.errors import SpecError, shown
from raycl.sequence.answers import given
from raycl.sequence.job import make_job
from raycl.use.heads import Head


def predictions(head: Head, task: str | None = None, stage: int | None = None) -> list[Given]:
    """The answers that the accuracy matrix was made from, in the order of the task's test split; no model is loaded.

    `task` and `stage` none = the last one; stage 0 = the untrained model. Raises SpecError for a cell that was not scored,
    UserError for data that cannot be read any more.
    """
    if not head.records:
        raise SpecError(
            f"{head.name}: a stage's key does not say which test data its run had; next step: name the run, with @N behind "
            "it for the state after its stage N"
        )
    job = make_job(head.spec, head.store)
    last = job.plan.stages[-1].row
    task, stage = task or head.spec.tasks[-1], last if stage is None else stage
    cells = {(cell.stage, cell.task) for cell in job.plan.cells if job.store.has_scores(cell.key)}
    if (stage, task) not in cells:
        scored = ", ".join(f"{name} after {row}" for row, name in sorted(cells)) or "none"
        raise SpecError(
            f"task {shown(task)} after stage {stage} of {head.name}: was not scored, or not on the test data that "
            f"are there now; "
            f"allowed: {scored}"
        )
    return given(job, stage, task)
