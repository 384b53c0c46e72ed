"""What a sweep is going to do: its points, each a sequence with stage keys, and what all of them have in common. No Ray."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from raycl.errors import SpecError, one_message, problems, shown
from raycl.fields import PositiveInt, Strict
from raycl.files import Json
from raycl.methods.registry import folders, method_class, outside_method
from raycl.presets import merge
from raycl.sequence.job import SequenceJob
from raycl.sequence.plan import StagePlan
from raycl.sequence.resolve import order_of
from raycl.sequence.sharing import spread
from raycl.sequence.siblings import packs
from raycl.spec import RunSpec
from raycl.state.keys import content_key
from raycl.sweep.spaces import Point, Space, load_space
from raycl.sweep.trials import Packs, TrialSettings
from raycl.tasks.load import load_tasks
from raycl.tasks.orders import order_title
from raycl.tasks.task import Task
from raycl.train.engine import engine_name

TRIALS = 20
"""Trials of a search that has no grid, if the user gives no number."""


class SweepSettings(Strict):
    """How a space is searched and what a trial gets."""

    space: str = Field(description="the space file")
    search: Literal["auto", "grid", "random", "optuna"] = Field(
        "auto", description="auto: the whole grid where it has at most --trials points, else Optuna"
    )
    trials: PositiveInt | None = Field(None, description="number of trials; none = the whole grid, else 20")
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="what ends bad trials")
    grace: PositiveInt = Field(2, description="stages before a trial may be ended")
    search_seed: int = Field(0, ge=0, description="seed of the search's draws, apart from the run's seed")
    max_concurrent: PositiveInt | Literal["auto"] = Field("auto", description="trials at once; auto: what fits")
    pack: PositiveInt = Field(
        1, description="stages of one parent that a trial's process trains at once; 1 = one by one"
    )
    workers: PositiveInt = Field(1, description="Ray Train workers of a trial; 1 = none, the trial's own process")
    cpus_per_trial: PositiveInt | None = Field(None, description="none = one per worker")
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = Field(
        None, description="none = one per worker if the cluster has GPUs"
    )


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as its user asks for it."""

    settings: SweepSettings
    preset: str
    layers: list[Json]
    """Layers of the run spec that all trials share, weakest first."""
    gpus: int = 0
    """GPUs of the cluster at hand."""
    resume: bool = False
    """Whether to go on with the sweep that the output folder records."""


@dataclass
class SweepPlan:
    """A sweep before anything runs: the space, the points where they are known, and what all trials have in common."""

    settings: SweepSettings
    space: Space
    search: str
    points: list[Point] | None
    """In the order in which they start; none = Optuna suggests them."""
    trials: int
    trial: TrialSettings
    tasks: list[Task]
    example: RunSpec
    """The spec of one point."""

    @property
    def stages(self) -> int:
        """Stages of a whole trial."""
        return 1 if method_class(self.example.method.name).joint else len(self.tasks)

    @property
    def optuna(self) -> str:
        """The version of Optuna that suggests the points; empty if they are known."""
        return version("optuna") if self.points is None else ""

    @property
    def need(self) -> dict[str, float]:
        """What each worker of a trial asks of the cluster, by Ray's names: CPU and GPU."""
        if self.trial.device == "cpu":
            return {"CPU": self.trial.threads, "GPU": 0.0}
        single = self.settings.workers == 1 and self.settings.gpus_per_trial
        return {"CPU": self.trial.threads, "GPU": float(single or 1)}

    @cached_property
    def sequences(self) -> list[list[StagePlan]]:
        """The stages of every known point."""
        return [self.job(point).plan.stages for point in self.points or ()]

    @property
    def keys(self) -> list[list[str]] | None:
        """Stage keys of every known point; none = Optuna suggests the points."""
        return None if self.points is None else [[stage.key for stage in stages] for stages in self.sequences]

    @cached_property
    def packs(self) -> Packs:
        """The stages that are trained at once."""
        points = self.points or []
        found = packs(self.sequences, self.settings.pack) if self.settings.pack > 1 else {}
        return {key: [(points[trial], place) for trial, place in pack] for key, pack in found.items()}

    def job(self, point: Point) -> SequenceJob:
        """A point's sequence."""
        return self.trial.job(point, self.tasks)

    def identity(self) -> Json:
        """What makes two sweeps the same, in plain data."""
        dimensions = {name: v if isinstance(v, list) else str(v) for name, v in self.space.dimensions.items()}
        dumped = self.settings.model_dump(mode="json", exclude={"space", "max_concurrent", "pack"})
        shared = self.trial.model_dump(mode="json", include={"preset", "layers", "workers", "store"})
        spec = self.example.model_dump(mode="json")
        found = outside_method(self.example.method.name)
        source = {"source": found.source} if found else {}
        space = {"dimensions": dimensions, "first": self.space.first}
        return {"space": space, **dumped, **shared, "example": spec, **source}

    @property
    def title(self) -> str:
        """The sweep as a heading."""
        return f"Sweep of {Path(self.space.path).stem} on {order_title(self.example.order)}"

    def name(self) -> str:
        """A readable name that two different sweeps never share."""
        order = self.example.order if "," not in self.example.order else f"custom-{len(self.tasks)}"
        return f"sweep-{Path(self.space.path).stem}-{order}-{content_key(self.identity())[:8]}"


def plan_sweep(request: SweepRequest, store: str, named: bool = True) -> SweepPlan:
    """Read the space, choose the points, validate them; and put them into a good order, for which their stages are `named`,
    which takes the model's files. Raises UserError for whatever the user can mend."""
    settings, layers, gpus = request.settings, request.layers, request.gpus
    said = merge(*layers)
    _, names = order_of(said)
    space = load_space(settings.space, len(names))
    _check_free(space, said)
    search, trials = _search(settings, space)
    trial = TrialSettings(
        preset=request.preset,
        layers=[space.base, *layers],
        gpus=gpus,
        store=store,
        workers=settings.workers,
        **_process(settings, gpus),
    )
    points = (
        space.grid() if search == "grid" else space.draw(trials, settings.search_seed) if search == "random" else None
    )
    specs = [_spec(trial, point, space) for point in (space.samples() if points is None else points)]
    if (
        not merge(space.base, said).get("data", {}).get("test_split")
        and specs[0].data.train_examples
        and specs[0].data.test_examples
    ):
        # Settings are chosen on rows that neither train nor test, so that the best one's test scores stay honest.
        trial = trial.model_copy(update={"layers": [*trial.layers, {"data": {"test_split": "validation"}}]})
        specs[0] = trial.spec((points or space.samples())[0])
    trial = trial.model_copy(update={"folders": tuple(folders(spec.method.name for spec in specs))})
    _check_pack(settings, specs[0], points is None)
    tasks = load_tasks(specs[0].tasks, specs[0].data)
    plan = SweepPlan(settings, space, search, points, len(points) if points else trials, trial, tasks, specs[0])
    return _in_good_order(plan) if named else plan


def _check_free(space: Space, said: Json) -> None:
    """A field of the space must not be fixed by a flag as well."""
    for name in space.dimensions:
        place: Any = said
        for part in name.partition("[")[0].split("."):
            place = place.get(part) if isinstance(place, dict) else None
        if place is not None:
            raise SpecError(
                f"{name}: set to {shown(place)} by a flag or --config, and varied by {space.path}; drop one of them"
            )


def _check_pack(settings: SweepSettings, spec: RunSpec, unknown: bool) -> None:
    """Raises SpecError where stages cannot be trained at once; `unknown` = the points are."""
    if settings.pack == 1:
        return
    reasons = {
        "the points of an Optuna search are not known beforehand; use --search grid or random": unknown,
        f"--workers {settings.workers} trains in a group; use --workers 1": settings.workers > 1,
        "needs plain torch; drop train.zero_stage and train.engine": engine_name(spec.train, 1) != "torch",
        "keeps no mid-stage checkpoints; use --set train.checkpoint_every=0": spec.train.checkpoint_every > 0,
        "is not done with dropout, whose draws depend on what runs beside a stage; use --set model.dropout=0 and "
        "method.dropout=0": bool(spec.model.dropout or getattr(spec.method, "dropout", 0)),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise SpecError(f"--pack {settings.pack}: {'; '.join(found)}")


def _search(settings: SweepSettings, space: Space) -> tuple[str, int]:
    """The kind of search and the number of trials."""
    size, trials = space.size, settings.trials
    search = settings.search
    if search == "auto":
        search = "grid" if size is not None and size <= (trials or TRIALS) else "optuna"
    if search == "grid" and trials and size and trials < size:
        raise SpecError(
            f"--trials {trials}: the grid of {space.path} has {size:,} points; drop --trials, or use --search random"
        )
    return search, trials or (size if search == "grid" and size else TRIALS)


def _process(settings: SweepSettings, gpus: int) -> Json:
    """Threads and device of a trial's process, or of each of its workers."""
    cpus = settings.cpus_per_trial or settings.workers
    if cpus < settings.workers:
        raise SpecError(f"--cpus-per-trial {cpus}: at least one per worker ({settings.workers}) is needed")
    wanted = settings.gpus_per_trial
    if settings.workers > 1 and wanted not in (None, 0, settings.workers):
        raise SpecError(
            f"--gpus-per-trial {wanted:g}: a trial with {settings.workers} workers takes one GPU per worker"
        )
    device = "cuda:0" if (gpus if wanted is None else wanted) else "cpu"
    return {"threads": cpus // settings.workers, "device": device}


def _spec(trial: TrialSettings, point: Point, space: Space) -> RunSpec:
    try:
        return trial.spec(point)
    except SpecError as error:
        raise SpecError(f"--space {space.path}, at the point {point}:\n{error}") from None


def _in_good_order(plan: SweepPlan) -> SweepPlan:
    """FIRST in front as it is; of the rest, neighbours that run at the same time part early."""
    if plan.keys is None or plan.points is None:
        return plan
    front = min(len(plan.space.first), len(plan.points))
    order = [*range(front), *(front + place for place in spread(plan.keys[front:]))]
    plan.points = [plan.points[place] for place in order]
    del plan.sequences
    return plan


def sweep_settings(values: Json) -> SweepSettings:
    """Validate the flags of a sweep. Raises SpecError that lists every problem."""
    try:
        return SweepSettings.model_validate(values)
    except ValidationError as error:
        lines = problems(error, lambda place: f"--{place.partition('.')[0].replace('_', '-')}")
        raise SpecError(one_message("the sweep's flags", lines, "See `raycl sweep --help`.")) from None
