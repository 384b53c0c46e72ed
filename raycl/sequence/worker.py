"""What every worker of a sequence runs: all missing stages and scores, one after another, in one warm process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from raycl.adapters.targets import chosen, summed_up
from raycl.errors import StoreError
from raycl.events import Adapted, Phase, Scored, StageEvent
from raycl.files import Json
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_class
from raycl.models.load import LoadedModel, load_model
from raycl.sections import ModelSpec
from raycl.sequence.imports import require_fits
from raycl.sequence.job import SequenceJob
from raycl.sequence.making import Making, publish
from raycl.sequence.partials import StagePartial
from raycl.sequence.plan import Cell, StagePlan
from raycl.sequence.ready import require_ready
from raycl.sequence.soundness import require_sound, signs_of_answers, signs_of_training, stored_signs
from raycl.sequence.states import States
from raycl.sequence.turns import turn
from raycl.state.lease import Lease
from raycl.state.lineage import ON_DRIFT
from raycl.state.stage_state import Branch, StagePart
from raycl.state.store import Store
from raycl.train.batches import Encoder
from raycl.train.engine import engine_name, start_engine
from raycl.train.generation import Decoder
from raycl.train.ops import builds_reported
from raycl.train.stage import StageRun
from raycl.train.workers import Workers

LOADING = "loading the model"
Report = Callable[[StageEvent], None]


@dataclass
class SequenceWorker:
    """One worker's part of a sequence. Rank 0 publishes and reports; all ranks read states from the store."""

    job: SequenceJob
    workers: Workers
    report: Report
    load: Callable[[ModelSpec, str], LoadedModel] = load_model
    """Gets the base model; a host that runs many sequences in one process keeps it."""
    trained: bool = field(default=False, init=False)
    _started: set[str] = field(default_factory=set, init=False)
    """The steps of the start-up that are done."""
    _made: set[str] = field(default_factory=set, init=False)
    """Keys of the stages that were trained by this worker."""
    _start_up: float = field(default=0.0, init=False)
    """Seconds that it took, until a stage records them."""

    def watched(self, beat: Callable[[], None]) -> None:
        """Call `beat` from here on whenever something has moved on."""
        report = self.report

        def tell(event: StageEvent) -> None:
            report(event)
            beat()

        self.workers, self.report = replace(self.workers, beat=beat), tell

    def run(self, stage_done: Callable[[StagePlan], None] = lambda stage: None) -> None:
        """Do what the store lacks, the untrained model's row last.

        `stage_done` is called on every rank after each stage that was worked on.
        """
        for stage in self.job.plan.stages:
            mine = self.make(stage)
            if self.settle(stage) or mine:
                stage_done(stage)
        self.score(0)

    def advance(self, stage: StagePlan) -> bool:
        """Train and score one stage, as far as the store lacks it; whether anything was to do."""
        mine = self.make(stage)
        return self.settle(stage) or mine

    def settle(self, stage: StagePlan) -> bool:
        """Make sure that a stored stage's row is scored, and hold it to what the run asks of its scores; whether there was
        anything to score."""
        worked = self.score(stage.row)
        self.require_sound_answers(stage)
        return worked

    def make(self, stage: StagePlan) -> bool:
        """Make sure that a stage is stored; whether it was trained here."""
        mine = False
        while not mine:
            with turn(self.store, self.workers, stage, self.report) as right:
                if right is None:
                    break
                mine = self._train(stage, right)
        if not mine and self.workers.rank == 0 and self.job.spec.train.checkpoint_every:
            self.store.drop_partial(stage.key)  # of a process that ended right after it had published the stage
        self._check_parent(stage, mine)
        self.trained = mine
        return mine

    def make_if_free(self, stage: StagePlan) -> None:
        """Train a stage that nobody else makes; what another run makes is left to it."""
        with turn(self.store, self.workers, stage, self.report, wait=False) as right:
            if right is not None:
                self._train(stage, right)

    def require_sound_answers(self, stage: StagePlan) -> None:
        """Where the run asks for it, raise for a stage whose scores show that something went wrong."""
        if self.job.spec.train.health == "fail":
            require_sound(
                self.workers.agreed(stored_signs(self.store, self.job.plan, stage)), stage, self.job.spec.train, True
            )

    def _check_parent(self, stage: StagePlan, mine: bool) -> None:
        """Raise StoreError for a stage that was stored and stands on another parent than the one that was made just now."""
        if not mine and stage.parent in self._made and (drift := self.store.drift(stage.key)):
            raise StoreError(f"{drift.words}; {ON_DRIFT}")

    def start_up_for_rest(self, trains: bool = True) -> None:
        """Start up for the first stage or row that the store lacks, if it lacks any, and for training if the worker
        `trains`; raises as `start_up`."""
        plan, store = self.job.plan, self.store
        missing = next((stage.stage for stage in plan.stages if not store.has(stage.key)), None)
        row = next((cell.stage for cell in [*plan.cells, *plan.own] if not store.has_scores(cell.key)), None)
        missing, row = self.workers.agreed((missing, row))
        if missing is not None or row is not None:
            self.start_up(missing or row or 0, trains=trains and missing is not None)

    def start_up(self, stage: int, trains: bool = True) -> None:
        """Load the model and, if the worker `trains`, start its engine, each once: no part of what `stage` costs.

        Raises UserError for a model that cannot be loaded and for an op of DeepSpeed's that cannot be built.
        """
        steps: dict[str, Callable[[], object]] = {LOADING: lambda: self.model}
        train = self.job.spec.train
        if trains and engine_name(train, self.workers.world) == "deepspeed":
            builds = "" if self.workers.device == "cpu" else ", building its ops where they are missing"
            steps[f"starting DeepSpeed{builds}"] = lambda: start_engine(train, self.workers)
        for name, step in steps.items():
            if name not in self._started:
                started = time.perf_counter()
                self.report(Phase(stage, name, 0, 1))
                step()
                self._started.add(name)
                self._start_up += time.perf_counter() - started
                if name == LOADING and self.adapted:
                    self.report(Adapted(stage, self.adapted))

    @property
    def store(self) -> Store:
        """Where states and scores are."""
        return self.job.store

    @cached_property
    def model(self) -> LoadedModel:
        """The base model, loaded once for all stages. Raises UserError if it cannot be read or this run cannot use it."""
        loaded = self.load(self.job.spec.model, self.workers.device)
        require_ready(loaded, self._encoder(loaded), self.job.spec, self.job.tasks)
        require_fits(loaded, self.job.spec, self.job.plan, self.store)
        return loaded

    @cached_property
    def adapted(self) -> dict[str, int]:
        """The modules that get adapters, as `Adapted` tells them; empty where the method puts none on."""
        method = self.job.spec.method
        if not method.adapts_modules():
            return {}
        return summed_up(chosen(self.model.backbone, getattr(method, "targets", None)))

    @cached_property
    def encoder(self) -> Encoder:
        """The tokeniser with the run's length limits."""
        return self._encoder(self.model)

    def _encoder(self, loaded: LoadedModel) -> Encoder:
        data = self.job.spec.data
        return Encoder(
            loaded.tokenizer, loaded.backbone.encoder_decoder, data.max_source_tokens, data.max_target_tokens
        )

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self, stage: StagePlan, right: Lease) -> bool:
        """Run one stage and publish it; not if `right` is lost by then: somebody else makes it. Whether it is published."""
        making = self.begin(stage, right)
        with builds_reported():
            part = making.run.run()
        return self.end(making, part)

    def begin(self, stage: StagePlan, right: Lease) -> Making:
        """A stage that is about to be trained, under the right to make it."""
        self.start_up(stage.stage)
        stands_on = self.store.manifest(stage.parent).digest if stage.parent else None
        run = StageRun(
            model=self.model,
            method=build(self.job.spec.method, self._info(stage.stage, stage.task)),
            state=self.states.chain(stage.parent),
            task=self.job.stage_tasks[stage.stage - 1],
            spec=self.job.spec,
            encoder=self.encoder,
            workers=self.workers,
            report=self.report,
            imported=self._imported(stage),
            partial=StagePartial(self.store, stage.key, right) if self.job.spec.train.checkpoint_every else None,
        )
        return Making(stage, right, stands_on, run)

    def end(self, making: Making, part: StagePart) -> bool:
        """Publish what was trained, unless somebody else makes it by now; whether it is published."""
        stage = making.stage
        found = self.workers.agreed(signs_of_training(making.run, part))
        require_sound(found, stage, self.job.spec.train, False)
        mine = self.workers.agreed(making.right.held)
        if mine and self.workers.rank == 0:
            publish(making, part, self.job, self._start_up, self.adapted, found)
        if mine:
            self._made.add(stage.key)
        else:
            self.report(Phase(stage.stage, "left to another run, which took over while this one stood still", 0, 1))
        self._start_up = 0.0
        self.workers.barrier()
        return mine

    def _imported(self, stage: StagePlan) -> Branch | None:
        """The branch from elsewhere that is this stage, if it is one."""
        key = stage.recipe.get("imported")
        return None if key is None else self.store.read_import(key)[0]

    def _info(self, stage: int, task: str) -> StageInfo:
        spec = self.job.spec
        alone = method_class(spec.method.name).alone(spec.method)
        return StageInfo(stage, len(self.job.stage_tasks), task, spec.seed, alone)

    @cached_property
    def states(self) -> States:
        """The states in the store."""
        return States(self.store, self.job.spec)

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(self, row: int) -> bool:
        """Score the missing cells of one row, state by state: one, unless the task id is at hand. Whether there were any."""
        cells = self.workers.agreed(
            [cell for cell in self.job.plan.to_score(row) if not self.store.has_scores(cell.key)]
        )
        if cells:
            self.start_up(row, trains=False)
        done = 0
        for state, group in groupby(cells, key=lambda cell: cell.state):
            with self._served(state) as method:
                for cell in group:
                    self.report(Phase(row, "evaluation", done, len(cells)))
                    self._score_cell(cell, method)
                    done += 1
        if cells:
            self.workers.barrier()
        return bool(cells)

    @contextmanager
    def _served(self, keys: tuple[str, ...]) -> Iterator[Method | None]:
        """A published state on the backbone, or the untrained model."""
        if not keys:
            yield None
            return
        state = self.states.of(keys)
        method = build(self.job.spec.method, self._info(state.stage, state.newest.task))
        try:
            method.serve(self.model.backbone, state)
            yield method
        finally:
            method.remove()

    def _score_cell(self, cell: Cell, method: Method | None) -> None:
        started = time.perf_counter()
        task = self.job.task(cell.task)
        scoring = self.job.spec.eval
        decoder = Decoder(self.model, method, self.encoder, scoring.batch_size, self.workers, scoring.batch_tokens)
        scored = decoder.score(task, self.workers.agreed(self._earlier(cell)))
        if self.workers.rank != 0:
            return
        record = {
            "task": cell.task,
            "metric": task.metric,
            "score": scored.score,
            "examples": len(task.test),
            "seconds": time.perf_counter() - started,
            **({"further": scored.further} if scored.further else {}),
            **({"doubtful": scored.doubtful} if scored.doubtful is not None else {}),
        }
        signs = signs_of_answers(self.job.plan, cell, task, scored)
        written = record | ({"health": list(signs)} if signs else {})
        self.store.write_scores(cell.key, written, scored.predictions)
        if cell in self.job.plan.cells:
            self.report(Scored(stage=cell.stage, seen=cell.seen, health=signs, **record))

    def _earlier(self, cell: Cell) -> list[Json]:
        """Where states are made of parts that stand alone: the stored predictions for a cell's task with its own part alone,
        in the row of its stage, or else in the row before."""
        plan, store = self.job.plan, self.store
        alone = [one for one in plan.own if (one.stage, one.task) == (cell.stage, cell.task)]
        before = [one for one in plan.cells_of(cell.stage - 1) if one.task == cell.task and one.state]
        stored = [one for one in (*alone, *before) if store.has_scores(one.key)]
        return store.read_predictions(stored[0].key) if stored and len(cell.state) > 1 else []
