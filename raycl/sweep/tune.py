"""Ray Tune, and only here: the trials of a sweep as Tune trials whose step is one stage.

A trial's process serves trial after trial (`reuse_actors`) and keeps the base model. What Tune saves of a trial is how many
stages it has done; the stages themselves are in the store.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig, Trainable, TuneConfig
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raycl.cluster import capacity, nodes, start_cluster
from raycl.errors import SetupError, UserError
from raycl.files import Json
from raycl.sweep.events import TrialEnd, TrialEvent, TrialStage, TrialStart
from raycl.sweep.optuna_search import OptunaSearcher
from raycl.sweep.plan import SweepPlan
from raycl.sweep.spaces import decode
from raycl.sweep.trials import Packs, TrialSettings, close_trial, note_of, open_trial
from raycl.tasks.task import Task

RETRIES = 2
"""How often a trial whose process died is taken up again; it continues from the store."""
FILE = "stage.json"
TRIAL_OVERHEAD: dict[str, float] = {"memory": 50 * 2**20}
"""What a trial with a worker group asks for itself: the group has the CPUs or GPUs. Tune wants more than nothing."""
METRIC = "AP"


class SequenceTrial(Trainable):
    """A Tune trial over a `Stepper`."""

    # `with_parameters` adds the tasks and the packs.
    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: dict[str, Any], tasks: list[Task], packs: Packs
    ) -> None:
        """Called once in a process."""
        self._tasks, self._packs = tasks, packs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial; the base model stays loaded."""
        self.config = new_config
        self.stepper, self.refused = None, ""
        try:
            settings = TrialSettings.model_validate_json(new_config["sweep"])
            self.stepper = open_trial(settings, decode(new_config["point"]), self._tasks, self._packs)
        except UserError as error:
            self.refused = str(error)
        return True

    def step(self) -> dict[str, Any]:
        """Do one stage. What a retry would not mend (an invalid point, a diverged loss) ends the trial as failed."""
        if self.stepper is None:
            return self._failed(0, self.refused)
        try:
            row = self.stepper.step()
        except UserError as error:
            return self._failed(self.stepper.done, str(error))
        whole = self.stepper.finished
        return row.to_json() | {"failed": "", "note": note_of(self.stepper), "whole": whole, "done": whole}

    def _failed(self, done: int, message: str) -> dict[str, Any]:
        failed = message or "failed"
        facts = {"stage": done, "trained": False, METRIC: 0.0, "failed": failed, "note": "", "whole": False}
        return facts | {"done": True}

    def cleanup(self) -> None:
        """Called when the trial is over: end its worker group, if it has one."""
        if self.stepper is not None:
            close_trial(self.stepper)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """How far it is."""
        done = self.stepper.done if self.stepper else 0
        Path(checkpoint_dir, FILE).write_text(json.dumps({"stage": done}), encoding="utf-8")

    # Tune hands over the folder that `save_checkpoint` has filled.
    def load_checkpoint(self, checkpoint: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read the stages it had done from the store; one that is lost is made again."""
        done = json.loads(Path(checkpoint, FILE).read_text(encoding="utf-8"))["stage"]
        while self.stepper and self.stepper.done < done:
            self.stepper.step()


class TrialListener(Callback):
    """Hands on what happens in Tune's own loop, which runs in the driver's process.

    Tune pickles its callbacks, hence no state: `handle` belongs to the class.
    """

    handle: ClassVar[Callable[[TrialEvent], None]]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has got a process."""
        self._tell(TrialStart, trial)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Json, **info: Any) -> None:
        """A stage is done."""
        self._tell(TrialStage, trial, **{name: result[name] for name in ("stage", "trained", "failed", "note")})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has reached its end, or its scheduler has ended it."""
        self._tell(TrialEnd, trial, failed="")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died too often."""
        lines = (trial.get_error() and str(trial.get_error()).strip().splitlines()) or ["its process died"]
        self._tell(TrialEnd, trial, failed=lines[-1])

    def _tell(self, event: type[TrialEvent], trial: Any, **facts: Any) -> None:
        type(self).handle(event(trial.trial_id, decode(trial.config["point"]), **facts))


def trials_at_once(plan: SweepPlan) -> int:
    """How many trials run at once on the cluster at hand, which is started if there is none.

    Raises SetupError if it cannot hold one.
    """
    start_cluster()
    machines = nodes()
    most = capacity(machines, plan.need, plan.settings.workers)
    if not most:
        cpus, gpus = (sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU"))
        raise SetupError(
            f"no room for a trial: it needs {plan.settings.workers} x ({plan.need['CPU']:g} CPUs, {plan.need['GPU']:g} "
            f"GPUs), the cluster has {cpus:g} CPUs and {gpus:g} GPUs; "
            "lower --workers, --cpus-per-trial or --gpus-per-trial"
        )
    wanted = plan.settings.max_concurrent
    return min(most, most if wanted == "auto" else wanted, plan.trials)


def run_trials(plan: SweepPlan, folder: str, handle: Callable[[TrialEvent], None]) -> None:
    """Run the sweep's trials, or take up those of an earlier call that `folder` (a path or URI) holds.

    Every change is handed to `handle` in this process. Raises KeyboardInterrupt if trials are left: Tune itself returns
    quietly when it is interrupted.
    """
    _quiet()
    TrialListener.handle = staticmethod(handle)
    resources = {"cpu": plan.need["CPU"], "gpu": plan.need["GPU"]}
    if plan.trial.workers > 1:
        resources = PlacementGroupFactory([TRIAL_OVERHEAD])
    trainable = tune.with_resources(tune.with_parameters(SequenceTrial, tasks=plan.tasks, packs=plan.packs), resources)
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _new_tuner(trainable, plan, folder)
    results = tuner.fit()
    if results.num_terminated + results.num_errors < plan.trials:
        raise KeyboardInterrupt


def _new_tuner(trainable: type[Trainable], plan: SweepPlan, folder: str) -> tune.Tuner:
    """Tune's description of the sweep."""
    trial, space, points, seed = plan.trial, plan.space, plan.points, plan.settings.search_seed
    place, _, name = folder.rpartition("/")
    config = TuneConfig(
        metric=METRIC,
        mode="max",
        search_alg=OptunaSearcher(space, seed, METRIC) if points is None else None,
        scheduler=scheduler(plan),
        num_samples=plan.trials if points is None else 1,
        max_concurrent_trials=trials_at_once(plan),
        # A worker group lives in its trial's process and must end with it.
        reuse_actors=trial.workers <= 1,
    )
    run = RunConfig(
        name=name,
        storage_path=place,
        failure_config=FailureConfig(max_failures=RETRIES),
        checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_frequency=1, checkpoint_at_end=False),
        callbacks=[TrialListener()],
        verbose=0,
    )
    # As text: Tune would take a mapping such as {"eval": ...} among the layers for an expression and run it.
    shared: dict[str, Any] = {"sweep": trial.model_dump_json()}
    if points is not None:
        shared["point"] = tune.grid_search([space.encode(point) for point in points])
    return tune.Tuner(trainable, param_space=shared, tune_config=config, run_config=run)


def scheduler(plan: SweepPlan) -> TrialScheduler:
    """What ends bad trials, always at a stage boundary: successive halving on the stage index, the median rule, nothing."""
    chosen, grace = plan.settings.scheduler, max(1, min(plan.settings.grace, plan.stages))
    if chosen == "asha":
        return ASHAScheduler(time_attr="stage", max_t=plan.stages, grace_period=grace, reduction_factor=2)
    if chosen == "median":
        return MedianStoppingRule(time_attr="stage", grace_period=grace, min_samples_required=3)
    return FIFOScheduler()


def _quiet() -> None:
    """No tables, no files and no folders of Tune's own making beside its record of the trials."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    for name in ("ray.tune", "ray.air", "ray.train", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
