"""Toy stages of many methods, run by one process or by a pair of data-parallel ones, and killed where a test wants it."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.models.load import LoadedModel, load_model
from raycl.spec import EvalSpec, ModelSpec, RunSpec, TrainSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.state.tensor_files import decode_tensors, encode_tensors
from raycl.tasks.task import Task
from raycl.train.batches import Encoder
from raycl.train.stage import StageRun
from raycl.train.workers import Workers
from tests.kit.cases import tensors_of
from tests.kit.toys import in_json

STAGES = 2
SILENT = timedelta(seconds=180)
"""How long a rank waits for the other before it gives up."""
Log = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A method's toy sequence."""

    name: str
    folder: Path
    """The model's."""
    params: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)


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
    params: dict[str, Any],
    tasks: Sequence[Task],
    state: StageState,
    train: dict[str, Any],
    workers: Workers | None = None,
    partial: Memory | None = None,
) -> tuple[StagePart, Log]:
    """Run the stage after `state`."""
    stage = state.stage + 1
    task = tasks[state.stage]
    checked = method_params(params["name"]).model_validate(params)
    alone = method_class(params["name"]).alone(checked)
    method = build(checked, StageInfo(stage, len(tasks), task.name, 0, alone))
    spec = RunSpec(
        order="toy",
        tasks=[one.name for one in tasks],
        model=ModelSpec(name=model.name, precision="fp32"),
        method=method.params,
        train=TrainSpec(**{"log_every": 1} | train),
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
        part, log = run_one(model, job.params, tasks, state, job.train, workers)
        state = state.append(part)
        outcomes.append(Outcome(tensors_of(part), part.facts, log))
    return outcomes


def run_jobs(rank: int, world: int, folder: Path, jobs: Sequence[Job], tasks: Sequence[Task]) -> None:
    """As one of `world` ranks, run all jobs and leave in `folder` what `read` reads."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    # DeepSpeed wants them set; the group meets in a file.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=SILENT
    )
    models: dict[Path, LoadedModel] = {}
    for job in jobs:
        if job.folder not in models:
            models[job.folder] = load_model(ModelSpec(name=str(job.folder), precision="fp32"), "cpu")
        try:
            outcomes = run_job(models[job.folder], job, tasks, Workers(rank, world))
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
