"""A sweep: the points of a space as trials, each a sequence, run by Ray Tune and sharing the store's stages."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from raycl.analysis.views import TrialView
from raycl.errors import SpecError
from raycl.events import Status, status_of
from raycl.files import Json, write_text
from raycl.report.plan import settings_words
from raycl.report.sweeps import SweepTerminal, page_rows, write_csv
from raycl.sequence.driver import Options
from raycl.sequence.job import known_environment
from raycl.sequence.preflight import check_workers
from raycl.sequence.sharing import sharing
from raycl.sequence.views import view_of
from raycl.state.store import Store
from raycl.sweep.driver import SweepDriver
from raycl.sweep.plan import SweepPlan, SweepRequest, plan_sweep
from raycl.sweep.record import SweepRecord
from raycl.tasks.orders import order_words
from raycl.tracking.records import About
from raycl.tracking.runs import Resumed
from raycl.tracking.tracker import GroupTracker

MOST_VIEWS = 12
"""Best trials whose matrices and curves the page shows."""


@dataclass
class SweepResult:
    """What a finished sweep leaves."""

    record: SweepRecord
    outputs: dict[str, Path]


def run_sweep(
    request: SweepRequest, options: Options | None = None, terminal: SweepTerminal | None = None
) -> SweepResult:
    """Run a sweep to its end, or with `resume` take up the one that its folder records.

    `terminal` none = standard output. Raises UserError before anything is started if the space, the data, the store or the
    machine do not fit, and KeyboardInterrupt if it was interrupted.
    """
    options, terminal = options or Options(), terminal or SweepTerminal()
    store = options.open_store()
    plan = plan_sweep(request, store.uri)
    folder = options.folder("runs", plan.name())
    check_workers(plan.example, plan.settings.workers)
    record = _record(plan, folder, store, request.resume)
    name = f"{plan.title} · {folder.name}"
    resumed = Resumed(run_id=record.run_id or None, mark=record.mark, part_of="sweep")
    group = GroupTracker(options.tracking, options.experiment, name, resumed)
    about = About(f"{plan.title}. Output: {folder}. Store: {store.uri}.", known_environment())
    record.run_id = group.start(record.settings, about)
    record.save(folder)
    driver = SweepDriver(plan, record, store, folder, options, terminal)
    status: Status = "FINISHED"
    try:
        _run(plan, driver)
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        driver.close(status)
        outputs = _write(plan, record, folder)
        # A step that grows: a resumed sweep writes its measures anew.
        group.finish(_measures(record), record.sharing.needed, list(outputs.values()), status)
    _show(plan, record, store, folder, terminal, group.places)
    return SweepResult(record, outputs)


def _record(plan: SweepPlan, folder: Path, store: Store, resume: bool) -> SweepRecord:
    """A new record, or the one of the same sweep that is to be resumed."""
    found = SweepRecord.load(folder) if resume else None
    if found is None:
        known = {key for keys in plan.keys or [] for key in keys}
        stored = [key for key in sorted(known) if store.has(key)]
        # A new name for every new sweep: Tune would mix two sweeps of one name.
        tune = f"{store.uri.rstrip('/')}/ray/{plan.name()}-{uuid4().hex[:8]}"
        return SweepRecord(settings=plan.identity(), stages=plan.stages, stored=stored, tune=tune, optuna=plan.optuna)
    if found.settings != plan.identity():
        differ = sorted(name for name, value in plan.identity().items() if found.settings.get(name) != value)
        raise SpecError(
            f"--resume: {folder} holds another sweep (other {', '.join(differ)}); give the flags and the space file it was "
            "started with, or another --output"
        )
    if found.optuna.partition(".")[0] != plan.optuna.partition(".")[0]:
        raise SpecError(
            f"--resume: {folder} was begun with Optuna {found.optuna or 'of an unknown version'}, and {plan.optuna} is "
            "installed, which suggests other points for the same seed; install that version, or give another --output"
        )
    return found


def _run(plan: SweepPlan, driver: SweepDriver) -> None:
    """Hand the trials to Tune. Ray is imported only here."""
    from raycl.sweep.tune import run_trials, trials_at_once

    record, terminal = driver.record, driver.terminal
    counts = None if plan.keys is None else sharing(plan.keys, record.stored).to_json()
    search = f"{plan.search}, scheduler {plan.settings.scheduler}, {trials_at_once(plan)} at once"
    facts = _facts(plan) | {"store": driver.store.uri, "output": str(driver.folder)}
    terminal.plan(f"{plan.trials:,} trials x {plan.stages} stages, {search}", counts, facts)
    if record.trials:
        terminal.resumed(sum(trial.status != "running" for trial in record.trials))
    run_trials(plan, record.tune, driver.handle)
    driver.settle()


def _facts(plan: SweepPlan) -> dict[str, str]:
    """What all trials have in common, what they differ in, and what each runs on."""
    varied = list(dict.fromkeys(name.partition("[")[0] for name in plan.space.dimensions))
    fields = {"method": ("method.name", "method.over"), "model": ("model.name",), "learning rate": ("train.lr",)}
    shared = settings_words(plan.example.model_dump(mode="json"))
    known = {name: text for name, text in shared.items() if not set(fields[name]) & set(varied)}
    workers = plan.settings.workers
    device = f"{plan.trial.device}, {workers} {'worker' if workers == 1 else 'workers'} a trial"
    packed = {"packed": f"up to {plan.settings.pack} stages of one parent at once"} if plan.packs else {}
    return known | {"varied": ", ".join(varied), "device": device, **packed}


def leaderboard_rows(record: SweepRecord) -> list[Json]:
    """The trials, best first, as the tables show them."""
    rows = []
    for rank, trial in enumerate(record.ranked(), start=1):
        last = trial.rows[-1] if trial.rows else {}
        measures = {name: last.get(name) for name in ("AP", "FT", "BWT", "FWT")}
        facts = {"rank": rank, "trial": trial.number, "params": trial.params, "done": len(trial.rows)}
        rows.append(facts | measures | {"stages": record.stages, "status": trial.status, "message": trial.message})
    return rows


def _write(plan: SweepPlan, record: SweepRecord, folder: Path) -> dict[str, Path]:
    """sweep.json, sweep.csv, best.yaml and the page."""
    from raycl.report.html import write_html  # draws figures, which takes a second to import

    record.save(folder)
    rows = leaderboard_rows(record)
    outputs = {"sweep.json": folder / "sweep.json", "sweep.csv": write_csv(folder / "sweep.csv", rows)}
    ranked = record.ranked()
    if ranked and ranked[0].status == "finished":
        spec = plan.trial.spec(ranked[0].point).model_dump(mode="json", exclude={"order", "tasks", "preset", "workers"})
        spec["data"]["test_split"] = "test"
        outputs["best.yaml"] = write_text(folder / "best.yaml", yaml.safe_dump(spec, sort_keys=False))
    views = []
    for trial in [one for one in ranked if one.rows][:MOST_VIEWS]:
        name = f"trial {trial.number}"
        views.append(view_of(plan.job(trial.point), name, trial.status, line=name))
    trials = [TrialView(f"trial {one.number}", _plain(one.params), one.ap, len(one.rows), one.status) for one in ranked]
    outputs["report.html"] = write_html(folder / "report.html", plan.title, views, page_rows(rows), trials)
    return outputs


def _plain(params: Json) -> Json:
    """Lists and mappings as text."""
    return {name: str(value) if isinstance(value, (list, dict)) else value for name, value in params.items()}


def _measures(record: SweepRecord) -> dict[str, float]:
    """What MLflow shows of the sweep as a whole."""
    ranked = record.ranked()
    best = ranked[0] if ranked and ranked[0].status == "finished" else None
    counts = {f"stage_runs/{name}": float(value) for name, value in record.sharing.to_json().items()}
    ap = best.ap if best else None
    return {"best_AP": math.nan if ap is None else ap, "trials": float(len(ranked)), **counts}


def _show(
    plan: SweepPlan, record: SweepRecord, store: Store, folder: Path, terminal: SweepTerminal, mlflow: dict[str, str]
) -> None:
    """Print the end of a sweep."""
    paths = {"outputs": str(folder), "store": store.uri, **mlflow}
    if (folder / "best.yaml").is_file():
        order, config = shlex.quote(order_words(plan.example.order)), shlex.quote(str(folder / "best.yaml"))
        where = shlex.quote(store.uri)
        paths["best on test"] = f"raycl run --order {order} --preset laptop --config {config} --store {where}"
    if plan.example.data.test_split == "validation":
        terminal.note("Scores are on rows kept out of training and test; `best on test` scores the best trial on test.")
    terminal.summary(leaderboard_rows(record), record.sharing.to_json(), paths)
