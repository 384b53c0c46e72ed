"""Optuna, and only here: a Ray Tune searcher whose next point follows from the seed and the record of trials alone.

Each suggestion builds a study anew from the record: what was tried, how it ended, its scores. So a sweep that is taken up
again goes on as if it had never stopped, and all there is to keep is the record, which is JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ConfigDict, Field
from ray.tune.search import Searcher
from ray.tune.search.sample import Float, Integer, LogUniform, Quantized, Uniform

from raycl.errors import SpecError, shown
from raycl.fields import Strict
from raycl.files import Json
from raycl.sweep.spaces import Space

STARTUP_TRIALS = 10
"""Trials that ended whole or early before TPE takes over from random draws."""
CANDIDATES_PER_SUGGESTION = 24
"""Draws from the good trials' density among which TPE takes the best."""
MAX_REPEATED_ASKS = 50
"""How often in a row Optuna may give a point that a trial had before it is taken all the same."""
STATES = {
    "running": TrialState.RUNNING,
    "whole": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial stands -> what Optuna calls it."""


class Tried(Strict):
    """A suggested point and what came of it."""

    model_config = ConfigDict(frozen=False)

    id: str
    """Tune's name of the trial."""
    params: Json
    """Dimension -> value in Optuna's distribution."""
    state: Literal["running", "whole", "stopped", "failed"] = "running"
    value: float | None = None
    """The score of a whole trial."""
    reports: dict[int, float] = Field(default_factory=dict)
    """Stage -> score after it."""

    def frozen(self, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
        """The trial as Optuna knows it."""
        return create_trial(
            state=STATES[self.state],
            value=self.value,
            params=self.params,
            distributions=distributions,
            intermediate_values=self.reports if self.state != "failed" else {},
        )


class SearchRecord(Strict):
    """All that a search is continued from."""

    optuna: str
    """Version that suggested the points."""
    seed: int
    distributions: dict[str, Json]
    trials: list[Tried]
    """In the order in which they were suggested."""


@dataclass(frozen=True)
class Dimension:
    """A dimension of a space as Optuna draws from it."""

    distribution: BaseDistribution
    step: float | None = None
    """Optuna draws k where the value is k x step; none = it draws the value itself."""
    whole: bool = False
    """Whether such values are integers."""

    def value(self, drawn: Any) -> Any:
        """A point's value for what Optuna drew."""
        if self.step is None:
            return drawn
        return int(drawn * self.step) if self.whole else float(drawn * self.step)

    def drawn(self, value: Any) -> Any:
        """The inverse of `value`. Raises ValueError for a value between two steps."""
        if self.step is None:
            return value
        index = round(value / self.step)
        if not math.isclose(index * self.step, value):
            raise ValueError(f"{value} is no multiple of {self.step:g}")
        return index


def dimension(values: Any) -> Dimension:
    """A list of values as categories (JSON text), a Tune sampler as a range with the same values.

    Raises ValueError for a sampler without bounds, such as `randn`, or of one's own.
    """
    if isinstance(values, list):
        return Dimension(CategoricalDistribution([json.dumps(one) for one in values]))
    sampler = values.get_sampler() if isinstance(values, Float | Integer) else None
    step = sampler.q if isinstance(sampler, Quantized) else None
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    if not isinstance(inner, Uniform | LogUniform):
        raise ValueError(
            "Optuna needs a list or a range: tune.uniform, loguniform, randint, lograndint, or a quantised one"
        )
    log, whole = isinstance(inner, LogUniform), isinstance(values, Integer)
    if step is not None and not (whole and step == 1):
        lowest, highest = _inward(values.lower / step, math.ceil), _inward(values.upper / step, math.floor)
        return Dimension(IntDistribution(lowest, highest, log=log), step, whole)
    if whole:  # Tune leaves the upper bound out
        return Dimension(IntDistribution(int(values.lower), int(values.upper) - 1, log=log))
    return Dimension(FloatDistribution(values.lower, values.upper, log=log))


def _inward(bound: float, inward: Any) -> int:
    """The step at a bound, or the next one inside it; 0.3 / 0.1 is 3, although it is not in floating point."""
    nearest = round(bound)
    return nearest if math.isclose(bound, nearest) else inward(bound)


class OptunaSearcher(Searcher):
    """Suggests points of a space by Optuna's TPE, those of FIRST first, none twice while another is found.

    A point is `{"point": {dimension: value}}`, categories as JSON text. The higher the metric the better.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"

    def __init__(self, space: Space, seed: int, metric: str) -> None:
        """Raises SpecError for a dimension that Optuna cannot draw from and for a point of FIRST outside the ranges."""
        super().__init__(metric=metric, mode="max")
        self._seed, self._tried = seed, list[Tried]()
        self._dimensions = {name: self._dimension(space, name) for name in space.dimensions}
        self._first = [self._point(space, index) for index in range(len(space.first))]

    @property
    def _distributions(self) -> dict[str, BaseDistribution]:
        return {name: one.distribution for name, one in self._dimensions.items()}

    def _dimension(self, space: Space, name: str) -> Dimension:
        try:
            return dimension(space.dimensions[name])
        except ValueError as error:
            raise SpecError(f"--space {space.path}: SPACE[{shown(name)}]: {error}") from None

    def _point(self, space: Space, index: int) -> Json:
        """A point of FIRST in Optuna's values."""
        try:
            point = space.encode(space.first[index])
            drawn = {name: self._dimensions[name].drawn(value) for name, value in point.items()}
            Tried(id="", params=drawn).frozen(self._distributions)
        except ValueError as error:
            raise SpecError(f"--space {space.path}: FIRST[{index}]: {error}") from None
        return drawn

    def set_search_properties(self, metric: str | None, mode: str | None, config: Json, **spec: Any) -> bool:
        """Nothing of it is new: space and metric are known from the start."""
        return True

    def suggest(self, trial_id: str) -> Json:
        """The next point, for the trial with this name."""
        study, known = self.study(), [one.params for one in self._tried]
        asked = study.ask(self._distributions)
        for _ in range(MAX_REPEATED_ASKS):
            if asked.params not in known:
                break
            study.tell(asked, state=TrialState.FAIL)  # a state that the search learns nothing from
            asked = study.ask(self._distributions)
        self._tried.append(Tried(id=trial_id, params=asked.params))
        return {"point": {name: self._dimensions[name].value(drawn) for name, drawn in asked.params.items()}}

    def study(self) -> optuna.Study:
        """A study that holds all earlier trials, with draws of its own for the next one."""
        number = len(self._tried)
        sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]),
            # Optuna changes the defaults of these from one major version to the next.
            n_startup_trials=STARTUP_TRIALS,
            n_ei_candidates=CANDIDATES_PER_SUGGESTION,
            multivariate=True,
            group=False,
            constant_liar=True,
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials([one.frozen(self._distributions) for one in self._tried])
        if number < len(self._first):
            study.enqueue_trial(self._first[number])
        return study

    def on_trial_result(self, trial_id: str, result: Json) -> None:
        """Note the score after a stage; TPE ranks trials that ended early by it."""
        score = result.get(self.metric)
        if not result.get("failed") and score is not None and math.isfinite(score):
            for one in self._named(trial_id):
                one.reports[int(result["stage"])] = float(score)

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        """Note how a trial ended. One that a scheduler ended has no value: its score is over fewer tasks."""
        result = result or {}
        score = result.get(self.metric)
        for one in self._named(trial_id):
            if error or result.get("failed"):
                one.state = "failed"
            elif result.get("whole") and score is not None and math.isfinite(score):
                one.state, one.value = "whole", float(score)
            else:
                one.state = "stopped"

    def _named(self, trial_id: str) -> list[Tried]:
        """The trial of this name; none if Tune's record outlived a kill and this one did not."""
        return [one for one in self._tried if one.id == trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Write the record as JSON."""
        Path(checkpoint_path).write_text(self._record().model_dump_json(indent=1), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Take up a record. Raises SpecError if it is of another space or seed."""
        found = SearchRecord.model_validate_json(Path(checkpoint_path).read_text(encoding="utf-8"))
        own = self._record()
        if (found.seed, found.distributions) != (own.seed, own.distributions):
            raise SpecError(f"{checkpoint_path}: is the record of a search over another space or with another seed")
        self._tried = found.trials

    def _record(self) -> SearchRecord:
        distributions = {name: json.loads(distribution_to_json(one)) for name, one in self._distributions.items()}
        return SearchRecord(optuna=version("optuna"), seed=self._seed, distributions=distributions, trials=self._tried)
