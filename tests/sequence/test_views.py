"""A sequence as a report sees it, read from a store that some other process may have filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.local import Stepper, worker_here
from raycl.sequence.resolve import resolve
from raycl.sequence.views import view_of, with_angles
from raycl.state.store import Store


def seconds_of(store: Store, job: SequenceJob, row: int) -> float:
    """Seconds in which the cells of a row were scored."""
    return sum(store.read_scores(cell.key)["seconds"] for cell in job.plan.cells if cell.stage == row)


def test_a_view_grows_with_the_store(flags, tmp_path: Path) -> None:
    """Before, in the middle and at the end of a sequence of two stages; nothing is written by looking."""
    layer = flags.spec("gain_o", "llama") | {"order": "roget,snippets"}
    spec = resolve("laptop", [layer], 0)
    store = Store(str(tmp_path / "store"))
    job = make_job(spec, store)
    fresh = view_of(job)
    assert (fresh.status, fresh.last, fresh.stages, fresh.angles) == ("0 of 2 stages", 0, [], None)

    stepper = Stepper(job, worker_here(job))
    stepper.step()
    half = view_of(job, label="half", status="stopped")
    assert (half.label, half.status, half.last, half.angles) == ("half", "stopped", 1, None)

    stepper.step()
    files = sorted(tmp_path.rglob("*"))
    whole = view_of(job, angles=False)
    assert whole.label == "gain_lora over o_lora, roget, snippets, seed 0"
    assert (whole.line, whole.order, whole.params["order"]) == (
        "gain_lora over o_lora",
        "roget, snippets",
        "roget,snippets",
    )
    assert view_of(job, angles=False, line="a").line == "a"
    assert (whole.status, whole.last) == ("finished", 2)
    assert whole.matrix == stepper.matrix
    assert whole.keys == [stage.key for stage in job.plan.stages]
    assert [len(stage.steps) for stage in whole.stages] == [4, 4]
    assert {"gate_mean/1", "gate_mean/2"} <= set(whole.stages[1].gauges)
    assert whole.trainable > 0 and whole.bytes > 0
    recorded = [store.manifest(key).end.seconds for key in whole.keys]
    assert ["start_up" in seconds for seconds in recorded] == [True, False], "the first stage's process starts, once"
    scored = {row: seconds_of(store, job, row) for row in (0, 1, 2)}
    work = sum(value for seconds in recorded for name, value in seconds.items() if name != "start_up")
    assert whole.scoring == pytest.approx(scored) and min(scored.values()) > 0
    cost = work + sum(scored.values())
    assert whole.seconds == pytest.approx(cost), "and its start-up is no part of what the sequence costs"
    assert whole.params["method.over"] == "o_lora"
    assert whole.angles is None
    angles = with_angles(whole, store).angles
    assert angles.shape == (2, 2)
    assert np.diag(angles) == pytest.approx(0, abs=1e-4)
    assert 0 < angles[0, 1] <= 90
    assert sorted(tmp_path.rglob("*")) == files
