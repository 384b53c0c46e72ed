"""What a run would do, without loading weights: its plan with counts, and estimates from what the store knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raycl.analysis.cost import Rates, Work, total
from raycl.analysis.outlook import Load, Outlook, RowOutlook, Scoring, StageOutlook, memory
from raycl.errors import SetupError
from raycl.fields import at_stage
from raycl.methods.common.base import Observes, When
from raycl.methods.registry import method_class
from raycl.models.counts import Batch
from raycl.models.outline import outline
from raycl.models.places import at_hand
from raycl.models.shapes import KNOWN, configuration
from raycl.sequence.costs import Trained, answering, reading, stepping, training
from raycl.sequence.counting import CHARACTERS, Counter, RoughTokenizer, Texts
from raycl.sequence.driver import Options
from raycl.sequence.history import Missing, stored_seconds
from raycl.sequence.job import SequenceJob, make_job
from raycl.sequence.plan import Cell, make_plan
from raycl.sequence.preflight import check_eval_workers, check_groups, check_workers
from raycl.sequence.speeds import Machine, find_speed
from raycl.sequence.task_check import text_side
from raycl.spec import Beside, RunSpec
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task
from raycl.train.batches import Encoder
from raycl.train.stage import batch_shape
from raycl.train.workers import local_device

WEIGHT_BYTES = {
    "none": {"bf16": 2.0, "fp32": 4.0},
    "8bit": {"bf16": 1.0, "fp32": 1.0},
    "4bit": {"bf16": 0.5, "fp32": 0.5},
}
REPLAYED = "rows that {method} replays in later stages ({kind}) are not counted"


@dataclass(frozen=True)
class Hardware:
    """What a run is imagined on, in the place of the machine at hand."""

    machine: Machine
    rates: Rates
    """Of one process; used where the store holds nothing that was measured on such a machine."""


def look_ahead(spec: RunSpec, options: Options | None = None) -> Outlook:
    """What `run_sequence` would do with the same arguments. Nothing is written, trained or made; no weight is read.

    Raises UserError where a run would be refused for its spec, data, model or workers.
    """
    return Lookout(options or Options()).look(spec)


@dataclass
class Lookout:
    """Looks ahead at runs, of which many may share their tasks and their model."""

    options: Options
    on: Hardware | None = None
    """None = the machine at hand, of whose speed nothing is said but what was measured."""

    def __post_init__(self) -> None:
        self._tasks: dict[str, list[Task]] = {}
        self._counters: dict[str, Counter] = {}

    def look(self, spec: RunSpec) -> Outlook:
        """What a run would do. Raises UserError as `look_ahead`."""
        check_groups(spec)
        check_eval_workers(spec)
        machine = self.on.machine if self.on else machine_of(spec)
        check_workers(spec, machine.workers)
        job = self._job(spec)
        missing = Missing.of(job.plan, job.store)
        return _View(spec, job, missing, machine, self._counter(spec, machine.workers), self.on).outlook()

    def _job(self, spec: RunSpec) -> SequenceJob:
        """The sequence. A model whose weights are not here gives no keys: then nothing of it counts as stored."""
        data = spec.data.model_dump_json() + ",".join(spec.tasks)
        store = self.options.place()
        if self.on is None or at_hand(spec.model):
            job = make_job(spec, store, self._tasks.get(data))
        else:
            tasks = self._tasks.get(data) or load_tasks(spec.tasks, spec.data)
            job = SequenceJob(spec, make_plan(spec, tasks, NOT_HERE), tasks, store, {})
        self._tasks[data] = job.tasks
        return job

    def _counter(self, spec: RunSpec, world: int) -> Counter:
        """What tokenises the tasks; runs that cut them alike share it."""
        singly = "gradients" in _passes(spec).values()
        shape = batch_shape(spec, world)
        soft = spec.method.soft_tokens(len(spec.tasks))
        alike = repr((spec.model.name, spec.data, spec.tasks, spec.eval, shape, spec.train.batches, singly, soft))
        if alike not in self._counters:
            self._counters[alike] = Counter(spec, _encoder(spec), world, singly, soft)
        return self._counters[alike]


NOT_HERE = "weights that are not here"
"""Stands for the fingerprint of a model whose files were not fetched."""


def machine_of(spec: RunSpec) -> Machine:
    """What the run would compute on here."""
    if spec.workers == 0:
        return Machine.here(local_device(), 1)
    from raycl.cluster import cluster_gpus, default_workers  # brings Ray, which a run in this process does without

    return Machine.here("cuda" if cluster_gpus() else "cpu", spec.workers or default_workers())


def _encoder(spec: RunSpec) -> Encoder:
    """What tokenises; a stand-in where nothing but the model's shapes is known."""
    try:
        return text_side(spec.model, spec.data)[0]
    except SetupError:
        if spec.model.name not in KNOWN:
            raise
        rough: Any = RoughTokenizer()
        both = bool(configuration(spec.model).is_encoder_decoder)
        return Encoder(rough, both, spec.data.max_source_tokens, spec.data.max_target_tokens)


def _passes(spec: RunSpec) -> Mapping[When, Observes]:
    """The data passes of a stage."""
    return method_class(spec.method.name).passes(spec.method)


@dataclass
class _View:
    """One run, looked at."""

    spec: RunSpec
    job: SequenceJob
    missing: Missing
    machine: Machine
    counter: Counter
    on: Hardware | None

    def __post_init__(self) -> None:
        self.shape = outline(self.spec)
        self.products = self.shape.products
        self.weight_bytes = WEIGHT_BYTES[self.spec.model.quantization][self.spec.model.precision]

    def outlook(self) -> Outlook:
        """All of it."""
        stages = tuple(
            self._stage(stage.stage, stage.key, task, stage.stage not in self.missing.stages)
            for stage, task in zip(self.job.plan.stages, self.job.stage_tasks, strict=True)
        )
        return Outlook(
            stages,
            self._scoring(),
            memory(self._load()),
            self.shape.parameters,
            find_speed(self.job, self.machine),
            tuple(self._notes()),
            tuple(self._rows()),
            self.on.rates if self.on else None,
            self.machine.workers,
            self.shape.trained,
        )

    def _stage(self, stage: int, key: str, task: Task, stored: bool) -> StageOutlook:
        """One stage; the rows of a stored one are not tokenised."""
        train = self.spec.train
        rows = len(task.train)
        held = max(1, round(rows * train.holdout)) if train.keep == "best" and train.holdout else 0
        epochs = at_stage(train.epochs, stage)
        steps = math.ceil((rows - held) / train.batch_size) * epochs
        found = StageOutlook(stage, task.name, key, stored, rows - held, steps)
        if stored:
            return found
        texts, trained = self.counter.texts(task), self._trained(stage)
        scale = texts.share * (rows - held) / rows * epochs
        seen = total(reading(self.products, batch, trained) for batch in texts.passed)
        back = total(stepping(self.products, batch, trained, self._beside(stage, batch)) for batch in texts.trained)
        held_out = seen * (texts.share * held / rows * epochs)
        return replace(
            found,
            tokens=round(texts.tokens * scale),
            run=round(texts.run * scale),
            sampled=texts.sampled,
            train=back * scale + held_out,
            passes=total(self._pass(observed, texts, trained, seen) for observed in _passes(self.spec).values()),
        )

    def _beside(self, stage: int, batch: Batch) -> Beside:
        """What a micro-batch passes through the model beside its plain pass: the method's passes, and the base model's."""
        found = self.spec.method.beside(stage, batch.answer)
        return replace(found, read=(*found.read, 1.0)) if self.spec.train.base_kl else found

    def _pass(self, observed: str, texts: Texts, trained: Trained, seen: Work) -> Work:
        """A data pass over the training rows, of which `seen` is a forward pass."""
        if observed == "inputs":
            return Work()
        if observed == "layers":
            return seen * texts.share
        return total(training(self.products, batch, trained) for batch in texts.passed) * texts.share

    def _trained(self, stage: int) -> Trained:
        """What stage `stage` runs through beside the base model."""
        method = self.spec.method
        rank = self._rank if self._rank or method.soft_tokens(stage) else None
        alone = method_class(method.name).alone(method)
        return Trained(0 if alone else self._stacked(stage - 1), rank, self.spec.model.gradient_checkpointing)

    @property
    def _rank(self) -> int:
        """Rank of a stage's branch, the mean over its modules where they differ; 0 where it has none."""
        adapted = self.products.branch + self.products.answer_branch
        return round(self.shape.trained / adapted) if adapted else 0

    def _stacked(self, stages: int) -> int:
        """Ranks of the branches of so many stages, where the method keeps them all."""
        keeps = method_class(self.spec.method.name).carries(self.spec.method) == "all"
        return self._rank * stages if keeps else 0

    def _load(self) -> Load:
        """What memory is estimated from."""
        spec, encoder = self.spec, self.counter.encoder
        micro = batch_shape(spec, self.machine.workers).micro
        return Load(
            **{name: getattr(self.shape, name) for name in ("parameters", "trained", "width", "vocabulary")},
            layers=self.products.all_layers,
            weight_bytes=self.weight_bytes,
            moments=1 if spec.train.optimizer == "muon" else 2,
            activation_bytes=2 if spec.model.precision == "bf16" else 4,
            tokens=self.counter.tokens or micro * encoder.longest,
            answers=self.counter.answers or micro * encoder.max_target,
            world=self.machine.workers,
            zero_stage=spec.train.zero_stage,
            checkpointing=spec.model.gradient_checkpointing,
        )

    @property
    def _cells(self) -> dict[str, Cell]:
        """The cells by key; a score that fills several in its first row."""
        return {cell.key: cell for cell in reversed([*self.job.plan.own, *self.job.plan.cells])}

    def _scoring(self) -> Scoring:
        """The cells, and what those that are stored took."""
        tests = {task.name: len(task.test) for task in self.job.tasks}
        counts = {key: tests[cell.task] for key, cell in self._cells.items()}
        left = sum(count for key, count in counts.items() if key in self.missing.cells)
        done = sum(counts.values()) - left
        each = sum(stored_seconds(self.job.store, self.job.plan).values()) / done if done else None
        return Scoring(len(counts), len(counts) - len(self.missing.cells), left, each)

    def _rows(self) -> Iterator[RowOutlook]:
        """What is left to answer, row by row."""
        left = [cell for key, cell in self._cells.items() if key in self.missing.cells]
        for row in sorted({cell.stage for cell in left}):
            tasks = [self.job.task(cell.task) for cell in left if cell.stage == row]
            ranks = self._stacked(row) or (self._rank if row else 0)
            works = (self._answers(task, ranks) for task in tasks)
            yield RowOutlook(row, sum(len(task.test) for task in tasks), total(works))

    def _answers(self, task: Task, ranks: int) -> Work:
        """The answers to a task's test set."""
        texts = self.counter.texts(task)
        answers = total(answering(self.products, one, ranks, self.weight_bytes) for one in texts.asked)
        if each := self.spec.method.adapted_rows():
            # Rows of the memory are of all tasks seen; this task's stand for them.
            rows = sum(batch.rows for batch in texts.trained)
            seen = total(training(self.products, batch, Trained(0, self._rank)) for batch in texts.trained)
            answers += seen * (each * sum(batch.rows for batch in texts.asked) / rows)
        return answers * texts.asked_share

    def _notes(self) -> Iterator[str]:
        """What the numbers leave out, or guess."""
        name = self.spec.method.name
        replays = method_class(name).about.replays
        if replays in ("real", "pseudo"):
            yield REPLAYED.format(method=name, kind=f"{replays} ones")
        if isinstance(self.counter.encoder.tokenizer, RoughTokenizer):
            yield f"the tokenizer of {self.spec.model.name} is not here: {CHARACTERS} characters count as a token"
        if self.on and not at_hand(self.spec.model):
            yield f"the weights of {self.spec.model.name} are not here, so that stages have no keys: none counts as stored"
