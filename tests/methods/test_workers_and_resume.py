"""What must hold for every method wherever it runs: the number of workers and a kill in mid-stage change nothing."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raycl.methods.registry import method_params
from raycl.state.stage_state import StagePart
from tests.kit.cases import CASES, same_part
from tests.kit.rank_stages import Job, Killed, Memory, Outcome, read, run_job, run_jobs, run_one

CLOSE = 1e-4
"""How far losses of one and of two workers may be apart."""
APART = 5e-4
"""How far their tensors may be: the norm of the difference, as a share of a tensor's own. Adam turns gradients at the level
of rounding into whole steps, so single numbers may differ more; half of the data left out differs by far more than this."""
FEW = {"lr": 1e-3, "epochs": 1, "batch_size": 4}
"""Four steps on 15 rows: the last global batch has three, the passes have eight for one worker and seven for the other."""
TOY = {"lr": 1e-2, "epochs": 2, "batch_size": 8}
"""The settings of the sequences in `trained`."""


def job_of(name: str, family: str, folder: Path) -> Job:
    """A case without dropout, which draws other numbers on other workers."""
    case = CASES[name]
    dropout = {"dropout": 0.0} if "dropout" in method_params(case.params["name"]).model_fields else {}
    return Job(f"{name}-{family}", folder, case.params | dropout, case.train | FEW)


@pytest.fixture(scope="session")
def odd_tasks(toy_task):
    """Tasks of 15 rows, whose answers share no word: directions of the inputs that no data decide would differ."""
    tasks = []
    for number in (1, 2):
        task = toy_task(number, distinct=5, repeats=3, spread=3)
        answers = {body: f"t{number}w{i} t{number}w{i + 5}" for i, body in enumerate({e.body: 0 for e in task.train})}
        rows = [tuple(replace(e, answers=(answers[e.body],)) for e in split) for split in (task.train, task.test)]
        tasks.append(replace(task, labels=tuple(answers.values()), train=rows[0], test=rows[1]))
    return tasks


class Pair:
    """Two ranks that work through jobs while the tests wait for what they leave."""

    def __init__(self, folder: Path, jobs: list[Job], tasks) -> None:
        self.folder = folder
        context = multiprocessing.get_context("spawn")
        self.ranks = [
            context.Process(target=run_jobs, args=(rank, 2, folder, jobs, tasks), daemon=True) for rank in (0, 1)
        ]
        for rank in self.ranks:
            rank.start()

    def outcomes(self, name: str, rank: int) -> list[Outcome]:
        """What a rank got from a job; an assertion fails if the job failed, or the rank ended without it."""
        while True:
            alive = self.ranks[rank].is_alive()
            found = read(self.folder, name, rank)
            if found is not None:
                return found
            assert alive, f"rank {rank} ended with exit code {self.ranks[rank].exitcode} before {name}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End both ranks."""
        for rank in self.ranks:
            rank.terminate()
            rank.join()


@pytest.fixture(scope="session")
def pair(request, tiny_folders, odd_tasks, tmp_path_factory):
    """Two workers on the jobs of the tests that were chosen, in their order: starting one pair per job would take long."""
    chosen = [item.callspec.params for item in request.session.items if "pair" in getattr(item, "fixturenames", ())]
    names = dict.fromkeys((params["name"], params["family"]) for params in chosen)
    jobs = [job_of(name, family, tiny_folders[family]) for name, family in names]
    pair = Pair(tmp_path_factory.mktemp("pair"), jobs, odd_tasks)
    yield pair
    pair.stop()


def assert_close(mine: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Equal shapes, and values as near as `APART` says."""
    assert mine.shape == theirs.shape, what
    apart, size = (mine.double() - theirs.double()).norm().item(), mine.double().norm().item()
    assert apart <= APART * size + 1e-9, f"{what}: {apart} of {size}"


def assert_same(mine: Outcome, theirs: Outcome) -> None:
    """Facts, losses and tensors agree; of a basis the projector, since its columns are unique only up to rotation."""
    assert mine.losses == pytest.approx(theirs.losses, abs=CLOSE, rel=CLOSE)
    assert mine.facts == theirs.facts
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name, value in mine.tensors.items():
        other = theirs.tensors[name]
        if "basis/" in name:
            value, other = value @ value.T, other @ other.T
        assert_close(value, other, name)


@pytest.mark.parametrize("name", list(CASES))
def test_two_workers_do_what_one_does(pair, name, family, tiny, tiny_folder, odd_tasks):
    """Same global batch: same losses, penalties and parts over two stages; and both workers hold the same part."""
    job = job_of(name, family, tiny_folder)
    alone = run_job(tiny, job, odd_tasks)
    first, second = (pair.outcomes(job.name, rank) for rank in (0, 1))
    for mine, theirs, others in zip(alone, first, second, strict=True):
        assert_same(mine, theirs)
        assert_same(theirs, others)


def test_a_killed_stage_goes_on_where_it_was(trained, case, tiny, toy_tasks):
    """Killed after a mid-stage checkpoint and started again, a stage has the log and the part, bit for bit, of one that
    nothing disturbed, dropout included."""
    memory = Memory()
    settings = TOY | case.train | {"checkpoint_every": 3}

    def run() -> tuple[StagePart, list[dict]]:
        return run_one(tiny, case.params, toy_tasks, trained[0].state, settings, partial=memory)

    with pytest.raises(Killed):
        run()
    part, log = run()
    assert memory.steps == list(range(3, log[-1]["steps"], 3))
    assert [(r["step"], r["loss"], r["terms"]) for r in log] == [
        (r["step"], r["loss"], r["terms"]) for r in trained[1].log
    ]
    assert same_part(part, trained[1].part)
