"""Checks of the machine and of the worker count before anything is started."""

from __future__ import annotations

from raycl.errors import SpecError
from raycl.spec import RunSpec


def check_machine(spec: RunSpec) -> None:
    """A run without GPU needs a C++ compiler for DeepSpeed. Raises SetupError that says how to get one."""
    import torch

    from raycl.train.engine import require_compiler

    if not torch.cuda.is_available():
        require_compiler()


def check_workers(spec: RunSpec, workers: int) -> None:
    """The global batch must split evenly. Raises SpecError that names sizes that do."""
    world = max(1, workers)
    batch, micro = spec.train.batch_size, spec.train.micro_batch_size
    if batch % world:
        raise SpecError(
            f"train.batch_size: {batch} does not split over {world} workers; "
            f"take a multiple of {world}, such as {batch // world * world or world}, or another --workers"
        )
    if micro and (batch // world) % micro:
        raise SpecError(
            f"train.micro_batch_size: {micro} does not divide the {batch // world} examples of a worker "
            f"(train.batch_size {batch} / {world} workers)"
        )
