"""The Ray cluster at hand: attach to it, count its GPUs."""

from __future__ import annotations

import logging

import ray


def attach() -> bool:
    """Connect to the cluster this process belongs to, if there is one. Returns whether there is."""
    if ray.is_initialized():
        return True
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError:
        return False
    return True


def cluster_gpus() -> int:
    """GPUs of the cluster at hand; without one, of this machine."""
    if attach():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def default_workers() -> int:
    """One worker per GPU, or one on CPU."""
    return max(1, cluster_gpus())
