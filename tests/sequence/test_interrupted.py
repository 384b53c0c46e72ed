"""A run that its user stops is recorded as KILLED, one that breaks as FAILED: sequence, comparison and sweep alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from raycl.comparison.driver import HowToRun, run_comparison
from raycl.comparison.grid import GridSpec
from raycl.comparison.runner import CellRunner
from raycl.events import Event, Step
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.resolve import resolve
from raycl.sweep import tune
from raycl.sweep.plan import SweepRequest, SweepSettings
from raycl.sweep.run import run_sweep
from tests.kit.runs import MakeFlags

ENDS = [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")]


class Breaks:
    """A listener that ends the run at the first step: what happens in the driver's process ends it."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def handle(self, event: Event) -> None:
        """Raise at a step."""
        if isinstance(event, Step):
            raise self.error


def options(tmp_path: Path) -> Options:
    """Everything below one folder."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return Options(str(tmp_path / "store"), uri, "interrupted", str(tmp_path / "out"))


def statuses(tmp_path: Path) -> list[str]:
    """How MLflow's runs ended."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("interrupted").experiment_id
    return [run.info.status for run in client.search_runs([experiment])]


def fields(flags: MakeFlags, **more: Any) -> dict[str, Any]:
    """Small settings."""
    return flags.spec("sin_lora", "llama") | {"order": "roget"} | more


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_a_sequence(flags: MakeFlags, tmp_path: Path, error: type[BaseException], status: str) -> None:
    """The run and that of the stage under way."""
    with pytest.raises(error):
        run_sequence(resolve("laptop", [fields(flags)]), options(tmp_path), [Breaks(error)])
    assert statuses(tmp_path) == [status] * 2


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_a_comparison(
    flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: str
) -> None:
    """What ends the driver, not what a sequence breaks at."""

    def breaks(self: CellRunner, cell: Any) -> None:
        raise error

    monkeypatch.setattr(CellRunner, "advance", breaks)
    settings = {name: value for name, value in fields(flags).items() if name not in ("order", "workers", "method")}
    grid = GridSpec(methods=["sin_lora"], orders=["roget"], preset="laptop", settings=settings)
    with pytest.raises(error):
        run_comparison(grid, options(tmp_path), HowToRun(workers=0))
    assert statuses(tmp_path) == [status]


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_a_sweep(
    flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: str
) -> None:
    """Tune's place is taken by what ends the driver."""

    def breaks(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(tune, "run_trials", breaks)
    monkeypatch.setattr(tune, "trials_at_once", lambda *plan: 1)
    (tmp_path / "space.py").write_text('SPACE = {"method.rank": [2, 3]}\n')
    layer = {name: value for name, value in fields(flags).items() if name not in ("workers", "method")}
    request = SweepRequest(SweepSettings(space=str(tmp_path / "space.py")), "laptop", [layer])
    with pytest.raises(error):
        run_sweep(request, options(tmp_path))
    assert statuses(tmp_path) == [status]
