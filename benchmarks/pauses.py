"""The pause between two stages of a sequence, in seconds: `python benchmarks/pauses.py [--workers 1] [--model packaged]`.

From the last record of a stage to the first record of the next, less data passes, scoring and one step: what is left is
publishing, installing the method and building the engine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import raycl
from raycl.events import Event, Scored, StageEnd, Step


@dataclass(frozen=True)
class Pauses:
    """What was found of a sequence."""

    seconds: list[float]
    """After each stage but the last."""
    step: float
    """Median seconds of a step."""


class Clock:
    """Notes when steps arrive, and what else takes time between two stages."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.steps: list[float] = []
        """Seconds between two records of one stage."""
        self.other: dict[int, float] = {}
        """Seconds of data passes and scoring between stage t and stage t + 1."""

    def handle(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Step):
            now = time.perf_counter()
            if event.stage in self.last:
                self.steps.append(now - self.last[event.stage])
            self.first.setdefault(event.stage, now)
            self.last[event.stage] = now
        elif isinstance(event, Scored):
            self._add(event.stage, event.seconds)
        elif isinstance(event, StageEnd):
            self._add(event.stage, event.seconds["pass_after"])
            self._add(event.stage - 1, event.seconds["pass_before"])

    def _add(self, stage: int, seconds: float) -> None:
        self.other[stage] = self.other.get(stage, 0.0) + seconds

    def pauses(self) -> Pauses:
        """One for each stage but the last."""
        step, stages = statistics.median(self.steps), sorted(self.first)
        return Pauses([self.first[t + 1] - self.last[t] - self.other[t] - step for t in stages[:-1]], step)


def pauses(model: str, method: str, workers: int) -> Pauses:
    """Run the demo's four tasks with few examples."""
    fields = {
        "order": "demo",
        "model": {"name": model},
        "method": {"name": method},
        "data": {"train_examples": 16, "test_examples": 4, "max_source_tokens": 64},
        "train": {"batch_size": 4, "log_every": 1},
        "eval": {"forward": False},
        "workers": workers,
    }
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        places = raycl.Options(
            store=str(Path(folder, "store")),
            tracking=f"sqlite:///{folder}/mlflow.db",
            output=str(Path(folder, "output")),
        )
        raycl.run_sequence(raycl.resolve("laptop", [fields]), places, [clock])
    return clock.pauses()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0, help="0 = in this process")
    parser.add_argument("--model", default="packaged", help="packaged, a folder or a hub id")
    parser.add_argument("--method", default="gain_lora")
    chosen = parser.parse_args()
    found = pauses(chosen.model, chosen.method, chosen.workers)
    for stage, seconds in enumerate(found.seconds, start=1):
        print(f"after stage {stage}: {seconds:.2f} s beside a step of {found.step:.2f} s")


if __name__ == "__main__":
    main()
