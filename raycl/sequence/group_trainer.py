"""Ray Train's trainer without the processes that raycl has no use for: each takes a second or two of a group's start.

Ray 2.60 has no switches for them. They are left out by name, and come back quietly if a later Ray names them otherwise.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

from raycl.cluster import is_own

ALWAYS = frozenset({"DatasetsCallback"})
"""The manager of data sets: raycl gives Ray Train none."""
ON_OWN_CLUSTER = frozenset({"PlacementGroupCleanerCallback"})
"""What frees a group whose controller was killed, with the help of the dashboard: a cluster of raycl's own has none, and
ends with the run."""
REQUESTS = ("after_controller_start", "_maybe_send_resource_request")
"""How a scaling policy asks an autoscaler for nodes, through a process of its own: a cluster of raycl's own cannot grow."""


class GroupTrainer(TorchTrainer):
    """`TorchTrainer` for groups of raycl's workers."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = ALWAYS | (ON_OWN_CLUSTER if is_own() else frozenset())
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in unused]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if is_own() and "scaling_policy" in given:
            ask_nobody(given["scaling_policy"])
        return super()._initialize_and_run_controller(**given)


def ask_nobody(policy: Any) -> None:
    """Let a scaling policy take the cluster as it is. One that asks in another way is left as it was."""
    if all(hasattr(policy, name) for name in REQUESTS):
        for name in REQUESTS:
            setattr(policy, name, _nothing)


def _nothing(*_given: Any) -> None:
    """In the place of a request."""
