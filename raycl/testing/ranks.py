"""Toy stages of many methods, run by one process or by a pair of data-parallel ones, and killed where a test wants it."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.models.load import LoadedModel, load_model
from raycl.sections import EvalSpec, ModelSpec, TrainSpec
from raycl.spec import RunSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.state.tensor_files import decode_tensors, encode_tensors
from raycl.tasks.task import Task
from raycl.testing.case import Case
from raycl.testing.probes import tensors_of
from raycl.testing.toys import in_json, make_toy_task
from raycl.train.batches import Encoder
from raycl.train.stage import StageRun
from raycl.train.workers import Workers, meet

STAGES = 2
CLOSE = 1e-4
"""How far losses of one and of two workers may be apart."""
APART = 5e-4
"""How far their tensors may be: the norm of the difference, as a share of a tensor's own. Adam turns gradients at the level
of rounding into whole steps, so single numbers may differ more; half of the data left out differs by far more than this."""
FEW: dict[str, Any] = {"lr": 1e-3, "epochs": 1, "batch_size": 4}
"""Four steps on 15 rows: the last global batch has three, the passes have eight for one worker and seven for the other."""
SILENT = timedelta(seconds=180)
"""How long a rank waits for the other before it gives up."""
Log = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A method's toy sequence."""

    params: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of TrainSpec."""
    name: str = "job"
    """What its outcomes are called in the folder of two workers."""
    folder: Path = Path()
    """The model's, for two workers."""


@dataclass
class Outcome:
    """What a stage left, as plain values."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    log: Log

    @property
    def losses(self) -> list[float]:
        """All logged losses and penalty terms, in order."""
        return [v for r in self.log for v in (r["loss"], *(term["raw"] for term in r["terms"].values()))]


class Killed(Exception):
    """Stands for the end of a process."""


class Memory:
    """A place for checkpoints that keeps the last one as bytes; the first one it is given ends the stage."""

    def __init__(self) -> None:
        self.kept: tuple[bytes, str] | None = None
        self.steps: list[int] = []
        """Optimizer steps after which something was kept."""

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last checkpoint."""
        return None if self.kept is None else (decode_tensors(self.kept[0], "memory"), json.loads(self.kept[1]))

    def save(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Keep a checkpoint."""
        self.kept = encode_tensors(tensors), json.dumps(facts)
        self.steps.append(facts["step"])
        if len(self.steps) == 1:
            raise Killed


def run_one(
    model: LoadedModel,
    job: Job,
    tasks: Sequence[Task],
    state: StageState,
    workers: Workers | None = None,
    partial: Memory | None = None,
) -> tuple[StagePart, Log]:
    """Run the stage after `state`."""
    stage = state.stage + 1
    task = tasks[state.stage]
    checked = method_params(job.params["name"]).model_validate(job.params)
    alone = method_class(job.params["name"]).alone(checked)
    method = build(checked, StageInfo(stage, len(tasks), task.name, 0, alone))
    spec = RunSpec(
        order="toy",
        tasks=[one.name for one in tasks],
        model=ModelSpec(name=model.name, precision="fp32"),
        method=method.params,
        train=TrainSpec.model_validate({"log_every": 1} | job.train),
        eval=EvalSpec(batch_size=8),
    )
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    silent = lambda event: None  # noqa: E731
    run = StageRun(model, method, state, task, spec, encoder, workers or Workers(), silent, partial)
    part = run.run()
    return part, in_json(run.log)


def run_job(model: LoadedModel, job: Job, tasks: Sequence[Task], workers: Workers | None = None) -> list[Outcome]:
    """The first stages of a job's sequence."""
    state, outcomes = StageState(), []
    for _ in range(STAGES):
        part, log = run_one(model, job, tasks, state, workers)
        state = state.append(part)
        outcomes.append(Outcome(tensors_of(part), part.facts, log))
    return outcomes


def run_jobs(rank: int, world: int, folder: Path, jobs: Sequence[Job], tasks: Sequence[Task]) -> None:
    """As one of `world` ranks, run all jobs and leave in `folder` what `read` reads."""
    workers = meet(folder, rank, world, SILENT)
    models: dict[Path, LoadedModel] = {}
    for job in jobs:
        if job.folder not in models:
            models[job.folder] = load_model(ModelSpec(name=str(job.folder), precision="fp32"), "cpu")
        try:
            outcomes = run_job(models[job.folder], job, tasks, workers)
        except Exception:
            _write(folder / f"{job.name}.{rank}", {"error": traceback.format_exc()})
            continue
        for stage, outcome in enumerate(outcomes):
            (folder / f"{job.name}.{rank}.{stage}").write_bytes(encode_tensors(outcome.tensors))
        _write(folder / f"{job.name}.{rank}", {"notes": [[o.facts, o.log] for o in outcomes]})


def read(folder: Path, name: str, rank: int) -> list[Outcome] | None:
    """What a rank left of a job; none so far. Raises AssertionError with the traceback if the job failed."""
    if not (folder / f"{name}.{rank}").exists():
        return None
    left = json.loads((folder / f"{name}.{rank}").read_text())
    assert "error" not in left, f"rank {rank}: {left['error']}"
    files = [folder / f"{name}.{rank}.{stage}" for stage in range(STAGES)]
    tensors = [decode_tensors(file.read_bytes(), str(file)) for file in files]
    return [Outcome(held, *notes) for held, notes in zip(tensors, left["notes"], strict=True)]


def _write(path: Path, values: dict[str, Any]) -> None:
    """All at once, so that nobody reads half of it."""
    path.with_suffix(path.suffix + ".new").write_text(json.dumps(values))
    path.with_suffix(path.suffix + ".new").rename(path)


def job_of(name: str, case: Case, folder: Path) -> Job:
    """A case's job on a model's folder, without dropout, which draws other numbers on other workers."""
    dropout = {"dropout": 0.0} if "dropout" in method_params(case.params["name"]).model_fields else {}
    return Job(case.params | dropout, case.train | FEW, name, folder)


def make_odd_tasks() -> list[Task]:
    """Two tasks of 15 rows, whose answers share no word: directions of the inputs that no data decide would differ."""
    tasks = []
    for number in (1, 2):
        task = make_toy_task(number, distinct=5, repeats=3, spread=3)
        answers = {body: f"t{number}w{i} t{number}w{i + 5}" for i, body in enumerate({e.body: 0 for e in task.train})}
        rows = [tuple(replace(e, answers=(answers[e.body],)) for e in split) for split in (task.train, task.test)]
        tasks.append(replace(task, labels=tuple(answers.values()), train=rows[0], test=rows[1]))
    return tasks


class Pair:
    """Two ranks that work through jobs while the tests wait for what they leave."""

    def __init__(self, folder: Path, jobs: Sequence[Job], tasks: Sequence[Task]) -> None:
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


def assert_two_workers_do_what_one_does(pair: Pair, model: LoadedModel, job: Job, tasks: Sequence[Task]) -> None:
    """Same global batch: same losses, penalties and parts over two stages as of one worker, without ZeRO; and both workers
    hold the same part."""
    alone = run_job(model, replace(job, train=job.train | {"zero_stage": 0}), tasks)
    first, second = (pair.outcomes(job.name, rank) for rank in (0, 1))
    for mine, theirs, others in zip(alone, first, second, strict=True):
        assert_same(mine, theirs)
        assert_same(theirs, others)


def assert_a_pair_does_what_one_does(folder: Path, jobs: Sequence[Job], tasks: Sequence[Task]) -> None:
    """The same of several jobs on one model, by a pair of workers of their own that leave their outcomes in `folder`."""
    model = load_model(ModelSpec(name=str(jobs[0].folder), precision="fp32"), "cpu")
    pair = Pair(folder, jobs, tasks)
    try:
        for job in jobs:
            assert_two_workers_do_what_one_does(pair, model, job, tasks)
    finally:
        pair.stop()
