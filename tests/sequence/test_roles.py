"""Groups that share a sequence by the store alone: one trains, another one scores."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.errors import DivergedError
from raycl.events import Scored, SequenceEnd, SequenceStart, StageEnd, StageEvent
from raycl.report.terminal import Terminal
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.resolve import resolve
from raycl.sequence.roles import play
from raycl.sequence.worker import SequenceWorker
from raycl.state.store import Store
from raycl.train.workers import Workers
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags, digests

Planned = Callable[[str], SequenceJob]


@pytest.fixture
def planned(tmp_path: Path, flags: MakeFlags) -> Planned:
    """A job of three stages, in a store of this name."""

    def make(name: str, **train: str) -> SequenceJob:
        fields = flags.spec("gain_inf", "llama") | {"order": "roget,snippets,plots", "eval": {"forward": True}}
        fields["train"] = {**fields.get("train", {}), **train}
        return make_job(resolve("laptop", [fields]), Store(str(tmp_path / name)))

    return make


def worker(job: SequenceJob, events: list[StageEvent]) -> SequenceWorker:
    """A worker whose reports are kept."""
    return SequenceWorker(job, Workers(), events.append)


def gone() -> None:
    """Nobody trains any more."""
    raise RuntimeError("gone")


def test_one_trains_while_another_one_scores(planned: Planned) -> None:
    """Parts and scores are those of one worker that does both; who trains scores nothing, and the other way round."""
    alone, shared = planned("alone"), planned("shared")
    worker(alone, []).run()
    scored: list[StageEvent] = []
    done = threading.Event()

    def look() -> None:
        if done.is_set():
            gone()

    thread = threading.Thread(target=lambda: play("scores", worker(shared, scored), lambda stage: None, look))
    thread.start()
    trained: list[StageEvent] = []
    ends: list[int] = []
    play("trains", worker(shared, trained), lambda stage: ends.append(stage.stage), gone)
    thread.join(120)
    done.set()
    assert not thread.is_alive()
    assert ends == [1, 2, 3]
    assert [event.stage for event in trained if isinstance(event, StageEnd)] == [1, 2, 3]
    assert not any(isinstance(event, Scored) for event in trained)
    assert not any(isinstance(event, StageEnd) for event in scored)
    rows = [event.stage for event in scored if isinstance(event, Scored)]
    assert rows == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert digests(Path(shared.store.uri)) == digests(Path(alone.store.uri))
    for cell in alone.plan.cells:
        found, wanted = (job.store.read_scores(cell.key) for job in (shared, alone))
        assert {**found, "seconds": 0} == {**wanted, "seconds": 0}
        assert shared.store.read_predictions(cell.key) == alone.store.read_predictions(cell.key)


def test_who_scores_ends_once_nobody_trains(planned: Planned) -> None:
    """It scores what there is and looks up while it waits."""
    job = planned("store")
    play("trains", worker(job, []), lambda stage: None, gone)
    events: list[StageEvent] = []
    missing = planned("empty")
    with pytest.raises(RuntimeError, match="gone"):
        play("scores", worker(missing, events), lambda stage: None, gone)
    assert [event.stage for event in events if isinstance(event, Scored)] == [0, 0, 0]
    play("scores", worker(job, events), lambda stage: None, gone)
    assert sum(isinstance(event, Scored) for event in events) == 3 + 11


def test_what_who_scores_finds_ends_the_training_too(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train.health=fail`: a sign in the scores of stage 1 ends the training before stage 2 is told of."""
    job = planned("store", health="fail")
    signs = {"found": ["the score is what guessing gives"]}
    monkeypatch.setattr(
        "raycl.sequence.worker.stored_signs",
        lambda store, plan, stage: signs["found"] if stage.stage == 1 and store.has(plan.stages[1].key) else [],
    )
    ends: list[int] = []
    with pytest.raises(DivergedError, match=r"stage 1 \(roget\): the score is what guessing gives"):
        play("trains", worker(job, []), lambda stage: ends.append(stage.stage), gone)
    assert ends == [1, 2]


def test_workers_that_score_need_ray(tmp_path: Path, flags: MakeFlags) -> None:
    """In one process there is nobody who could: said at once, before anything is started."""
    answer = invoke("run", flags(tmp_path / "store", "o_lora", order="roget,snippets", eval__workers=1))
    assert answer.code == 2 and "eval.workers: 1" in answer.stderr and "set --workers to 1 or more" in answer.stderr
    assert not (tmp_path / "store").exists()


def test_the_critical_path_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """How long the scores took beyond the training, where others scored; else not."""
    matrix = AccuracyMatrix(["a"]).to_json()
    facts = {"seconds": 125.0, "seconds_after_training": 5.0}
    for workers in (1, 0):
        terminal = Terminal()
        terminal.handle(SequenceStart({"tasks": ["a"], "eval": {"workers": workers}}, (), {}))
        terminal.handle(SequenceEnd("FINISHED", matrix, facts, {}, None))
        said = capsys.readouterr().out
        assert ("critical path: 2.1 min, 5 s of it after the last training" in said) is bool(workers)
