"""The Ray cluster at hand: attach to it, count its GPUs."""

from __future__ import annotations

import logging
import os

import ray

from raycl.errors import SetupError


def attach() -> bool:
    """Connect to the cluster of RAY_ADDRESS, or to the one `ray start` made here. Returns whether there is one.

    A cluster that another program started for itself is left alone: it ends with that program. Raises SetupError if
    RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return True
    named = os.environ.get("RAY_ADDRESS")
    address = named or _started_here()
    if not address:
        return False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as error:
        if named:
            raise SetupError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there. Start it (`ray start --head`), or unset RAY_ADDRESS"
            ) from error
        return False
    return True


def _started_here() -> str | None:
    """The address that `ray start` noted on this machine, which may be stale; none if it noted none.

    Ray has no public way to ask for it: `ray.init()` starts a cluster where there is none, and `address="auto"` also joins a
    cluster that another program started for itself.
    """
    from ray._private.services import find_bootstrap_address

    return find_bootstrap_address(None)


def cluster_gpus() -> int:
    """GPUs of the cluster at hand; without one, of this machine."""
    if attach():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def default_workers() -> int:
    """One worker per GPU, or one on CPU."""
    return max(1, cluster_gpus())
