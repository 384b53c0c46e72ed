"""What a group is started with, and what not. No cluster."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from raycl.sequence import group_trainer
from raycl.sequence.group_trainer import GroupTrainer, ask_nobody


def added(trainer: type[TorchTrainer]) -> list[str]:
    """What Ray Train adds to a run, by name."""
    made = trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    return [type(one).__name__ for one in made._create_default_callbacks()]


@pytest.mark.parametrize(
    ("own", "without"),
    [("", {"DatasetsCallback"}), ("1", {"DatasetsCallback", "PlacementGroupCleanerCallback"})],
)
def test_a_group_has_all_that_ray_train_adds_but_what_is_of_no_use(
    own: str, without: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager of data sets never; what cleans up with the help of a dashboard only where there may be one."""
    monkeypatch.setenv("RAYCL_OWN_CLUSTER", own)
    theirs = added(TorchTrainer)
    assert without < set(theirs)
    assert added(GroupTrainer) == [name for name in theirs if name not in without]


class Asked(Exception):
    """An autoscaler was asked."""


@pytest.mark.parametrize("own", ["", "1"])
def test_only_a_cluster_that_can_grow_is_asked_to(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own policy, as the controller gets it, starts and decides; what decides how many workers there are stays."""
    monkeypatch.setenv("RAYCL_OWN_CLUSTER", own)

    def refuse(_id: str) -> None:
        raise Asked

    made: list[Any] = []
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda self, **given: _take(made, given))
    GroupTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=3)).fit()
    module = __import__(type(made[0]).__mro__[1].__module__, fromlist=["x"])
    monkeypatch.setattr(module, "TrainAutoscalingCoordinatorClient", refuse)
    policy = pickle.loads(pickle.dumps(made[0]))
    if not own:
        with pytest.raises(Asked):
            policy.after_controller_start(SimpleNamespace(run_id="a"))
        return
    policy.after_controller_start(SimpleNamespace(run_id="a"))
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3


def _take(made: list[Any], given: dict[str, Any]) -> SimpleNamespace:
    made.append(given["scaling_policy"])
    return SimpleNamespace(error=None)


def test_a_policy_that_asks_in_another_way_is_left_alone() -> None:
    """Half of it silenced would fail where the other half is missed."""
    policy = SimpleNamespace(after_controller_start=1)
    ask_nobody(policy)
    assert policy.after_controller_start == 1
    assert set(group_trainer.REQUESTS) - set(vars(policy)) == {"_maybe_send_resource_request"}
