"""How fast stages were, as their manifests tell it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass

from raycl.analysis.outlook import Speed
from raycl.events import work_seconds
from raycl.sequence.job import SequenceJob
from raycl.state.manifest import Manifest
from raycl.train.workers import device_name

MOST = 1_000
"""Manifests of a store that are looked at."""


@dataclass(frozen=True)
class Machine:
    """What stages are trained on, as manifests name it."""

    device: str
    """`cpu`, or `cuda`, without a number."""
    name: str
    """What its GPU calls itself; of a CPU, the platform."""
    workers: int

    @classmethod
    def here(cls, device: str, workers: int) -> Machine:
        """This machine; of GPUs that only other machines have, no name is known."""
        kind = device.partition(":")[0]
        return cls(kind, platform.platform() if kind == "cpu" else _gpu(device), workers)

    def like(self, other: Machine) -> bool:
        """Whether the `other` one's speed speaks for this one's: a GPU's name may be given by a part of it, such as h100."""
        named = bool(self.name) and self.name.lower() in other.name.lower()
        return named and (self.device, self.workers) == (other.device, other.workers)

    @classmethod
    def of(cls, manifest: Manifest) -> Machine:
        """The one that a stage was trained on."""
        runtime = manifest.runtime
        kind = str(runtime.get("device", "")).partition(":")[0]
        name = manifest.environment.get("platform") if kind == "cpu" else runtime.get("device_name")
        return cls(kind, str(name), int(runtime.get("workers", 0)))


def _gpu(device: str) -> str:
    """The name of this machine's GPU."""
    from raycl.models.precision import gpus

    return device_name(device)["device_name"] if gpus() else ""


def find_speed(job: SequenceJob, machine: Machine) -> Speed | None:
    """The speed of the stored stages of the job's model on `machine`, of its method where there are any; else none."""
    model = job.plan.stages[0].recipe["model"]
    same = [one for one in _manifests(job) if one.recipe["model"] == model and machine.like(Machine.of(one))]
    own = [one for one in same if one.recipe["method"].get("name") == job.spec.method.name]
    timed = [one for one in own or same if one.steps and one.end.seconds.get("train")]
    if not timed:
        return None
    tokens, seconds, work = (sum(values) for values in zip(*map(_totals, timed), strict=True))
    return Speed(tokens / seconds, max(1.0, work / seconds), len(timed), bool(own))


def _manifests(job: SequenceJob) -> Iterator[Manifest]:
    """Those of the store, as far as they are looked at."""
    return (job.store.manifest(key) for key in job.store.stage_keys()[:MOST])


def _totals(manifest: Manifest) -> tuple[float, float, float]:
    """Tokens run, seconds of training, seconds of all work; every step is taken to be as long as the log's mean says."""
    spent, last = 0.0, 0
    for step in manifest.steps:
        spent += (step.step - last) / step.tokens_per_s
        last = step.step
    train = manifest.end.seconds["train"]
    return train * last / spent, train, work_seconds(manifest.end.seconds)
