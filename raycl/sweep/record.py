"""The record of a sweep: its settings, its trials and how far each went, in `sweep.json`, rewritten at every change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from raycl.errors import SpecError
from raycl.fields import Strict
from raycl.files import Json, write_json
from raycl.sequence.sharing import Sharing, sharing
from raycl.sweep.spaces import gathered

FILE = "sweep.json"
Status = Literal["running", "finished", "stopped", "failed"]


class TrialRecord(Strict):
    """One trial: its point, the stages it stands on, and the measures after each stage it finished."""

    model_config = ConfigDict(frozen=False)

    id: str
    number: int
    """1 for the trial that started first."""
    point: Json
    """Dimension of the space -> value."""
    keys: list[str] = Field(default_factory=list)
    """Stage keys, first to last; empty if the point makes no valid spec."""
    rows: list[Json] = Field(default_factory=list)
    """stage, task, key, trained (by this trial), AP, FT, BWT, FWT of every finished stage; null = undefined."""
    status: Status = "running"
    message: str = ""
    """Why it failed."""
    run_id: str = ""
    """Its MLflow run."""

    def opened(self, run_id: str) -> None:
        """MLflow has made the run, or found it."""
        self.run_id = run_id

    @property
    def params(self) -> Json:
        """Field of the space -> value; a list for a choice per stage."""
        return gathered(self.point)

    @property
    def words(self) -> str:
        """Its number and its settings, as a name."""
        settings = ", ".join(f"{name}={value}" for name, value in self.params.items())
        return f"trial {self.number:03d} ({settings})"

    @property
    def ap(self) -> float | None:
        """AP after the last finished stage."""
        return self.rows[-1]["AP"] if self.rows else None

    @property
    def reached(self) -> list[str]:
        """Keys of the stages it finished."""
        return self.keys[: len(self.rows)]


class SweepRecord(Strict):
    """A whole sweep."""

    model_config = ConfigDict(frozen=False)

    settings: Json
    """What defines the sweep: space, search, scheduler, seeds, layers of the spec."""
    stages: int
    """Stages of a trial that goes to the end."""
    stored: list[str] = Field(default_factory=list)
    """Keys of stages that were in the store before the sweep."""
    tune: str = ""
    """Ray Tune's own folder of the sweep, from which it is resumed."""
    optuna: str = ""
    """Version of Optuna that suggests the points; empty if the points are known from the start."""
    run_id: str = ""
    """The MLflow run above the trials'."""
    trials: list[TrialRecord] = Field(default_factory=list)

    @property
    def mark(self) -> str:
        """What tells the sweep's runs in MLflow from all others: its name for Tune, which no other sweep has."""
        return self.tune.rpartition("/")[2]

    def find(self, trial: str) -> TrialRecord | None:
        """The trial with this id."""
        return next((one for one in self.trials if one.id == trial), None)

    def ranked(self) -> list[TrialRecord]:
        """Best first: the finished ones by AP; then those that went further; failed ones last."""
        return sorted(self.trials, key=lambda one: (one.status == "failed", -len(one.rows), -(one.ap or 0), one.number))

    @property
    def sharing(self) -> Sharing:
        """What the stages that the trials reached took."""
        return sharing([trial.reached for trial in self.trials], self.stored)

    def save(self, folder: Path) -> None:
        """Replace the file at once, so that no reader meets half of it."""
        values: dict[str, Any] = self.model_dump(mode="json") | {"sharing": self.sharing.to_json()}
        write_json(folder / FILE, values)

    @classmethod
    def load(cls, folder: Path) -> SweepRecord | None:
        """The record in a folder, if there is one. Raises SpecError if it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate({name: value for name, value in values.items() if name != "sharing"})
        except (ValidationError, ValueError, AttributeError) as error:
            raise SpecError(f"{path}: cannot be read as a sweep ({error}); give another --output") from None
