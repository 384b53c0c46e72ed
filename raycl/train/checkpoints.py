"""Mid-stage checkpoints: all that lets a stage go on exactly where it was killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from raycl.errors import DivergedError
from raycl.events import Step, from_json, to_json
from raycl.train.engine import Engine
from raycl.train.meter import Meter
from raycl.train.selection import Best
from raycl.train.workers import Workers


class Partial(Protocol):
    """Where a stage may leave a mid-stage checkpoint; the host decides what that means."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint of this very stage, or none."""

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep a checkpoint in place of the last one."""


@dataclass(frozen=True)
class Checkpoints:
    """Trained weights, the optimizer's moments, the best epoch so far, what the method gathers while training, and every
    worker's own generator and meter."""

    partial: Partial
    engine: Engine
    best: Best | None
    workers: Workers
    running: Callable[[], Mapping[str, Tensor]]
    """The tensors that the method fills in place."""

    def save(self, step: int, log: list[Step], meter: Meter) -> None:
        """Leave the stage as it is after optimizer step `step` with the host.

        Raises DivergedError on every worker, and leaves the checkpoint before as it is, if a loss or a weight is no number
        any more: whoever went on from there could never end.
        """
        everyone = self.workers.gather((meter.state(), generators(self.workers.device)))
        self._require_finite(step, [total for state, _ in everyone for total in state["sums"].values()])
        if self.workers.rank != 0:
            return
        tensors = {
            f"worker {rank}/{name}": value for rank, (_, own) in enumerate(everyone) for name, value in own.items()
        }
        facts: dict[str, Any] = {
            "step": step,
            "log": [to_json(one) for one in log],
            "meters": [state for state, _ in everyone],
        }
        for index, parameter in enumerate(self.engine.parameters):
            tensors[f"{index}/value"] = parameter.detach()
            for name, value in self.engine.optimizer.state[parameter].items():
                tensors[f"{index}/{name}"] = value.detach()
        tensors |= {f"running/{name}": value for name, value in self.running().items()}
        if self.best is not None and self.best.values:
            facts["best_loss"] = self.best.loss
            tensors |= {f"best/{index}": value for index, value in enumerate(self.best.values)}
        self.partial.save(tensors, facts)

    def _require_finite(self, step: int, losses: Iterable[float]) -> None:
        """The trained weights are the same on all workers, so all of them find the same."""
        sound = all(bool(torch.isfinite(parameter).all()) for parameter in self.engine.parameters)
        if not sound or not all(map(math.isfinite, losses)):
            raise DivergedError(
                f"after step {step} a {'loss' if sound else 'weight'} is no number any more; the checkpoint before it is "
                "kept. Lower train.lr or use model.precision=fp32."
            )

    def load(self, meter: Meter) -> tuple[int, list[Step]]:
        """Take up the last checkpoint, if all workers see the same one: its step and the log until then, or (0, [])."""
        found = self.partial.load()
        steps = self.workers.gather(found and int(found[1]["step"]))
        if found is None or len(set(steps)) > 1:
            return 0, []
        tensors, facts = found
        for index, parameter in enumerate(self.engine.parameters):
            parameter.data.copy_(tensors.pop(f"{index}/value"))
            self.engine.optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter)
                for name, value in _under(tensors, f"{index}/").items()
            }
        for name, value in self.running().items():
            value.copy_(tensors[f"running/{name}"])
        if self.best is not None and "best_loss" in facts:
            values = [tensors[f"best/{index}"].to(parameter) for index, parameter in enumerate(self.engine.parameters)]
            self.best.loss, self.best.values = facts["best_loss"], values
        if len(facts["meters"]) == self.workers.world:  # otherwise no worker has a state of its own to take up
            meter.restore(facts["meters"][self.workers.rank])
            set_generators(_under(tensors, f"worker {self.workers.rank}/"), self.workers.device)
        events = [from_json(values) for values in facts["log"]]
        return steps[0], [event for event in events if isinstance(event, Step)]


def generators(device: str) -> dict[str, Tensor]:
    """The states of this worker's global generators."""
    states = {"rng": torch.get_rng_state()}
    if device != "cpu":
        states["rng_cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: dict[str, Tensor], device: str) -> None:
    """Put generators back into `states`."""
    torch.set_rng_state(states["rng"])
    if "rng_cuda" in states and device != "cpu":
        torch.cuda.set_rng_state(states["rng_cuda"], device)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
