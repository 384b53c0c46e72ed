"""What the driver hears of a worker group's failures, and what a group is started with. No cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from raycl.events import Retry
from raycl.sequence.group import GROUP_RESTARTS, FailureNotes, GroupTrainer


def test_each_failure_after_which_the_group_is_started_again_is_told() -> None:
    """With the worker's own error; the last one ends the run and is told by the run itself."""
    told: list[Any] = []
    notes = FailureNotes(SimpleNamespace(put=told.append))
    for _ in range(GROUP_RESTARTS + 1):
        notes.after_exception(None, {1: SimpleNamespace(_base_exc=ValueError("first\nsecond"))})
    assert told == [Retry("ValueError: first", number, GROUP_RESTARTS) for number in (1, 2)]
    FailureNotes(SimpleNamespace(put=told.append)).after_exception(None, {})
    assert told[-1] == Retry("RuntimeError: no reason is known", 1, GROUP_RESTARTS)


def test_a_group_has_all_that_ray_train_adds_but_its_manager_of_data_sets() -> None:
    def added(trainer: type[TorchTrainer]) -> list[str]:
        made = trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
        return [type(one).__name__ for one in made._create_default_callbacks()]

    theirs = added(TorchTrainer)
    assert theirs.count("DatasetsCallback") == 1
    assert added(GroupTrainer) == [name for name in theirs if name != "DatasetsCallback"]
