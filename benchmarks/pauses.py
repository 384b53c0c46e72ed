"""The pause between two stages of a sequence, in seconds: `python benchmarks/pauses.py [--workers 1] [--model packaged]`.

From the last record of a stage to the first record of the next, less data passes and scoring: what is left is publishing,
installing the method and building the engine, and the first step of the next stage.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import raycl
from raycl.events import Event, Scored, StageEnd, Step


class Clock:
    """Notes when steps arrive, and what else takes time between two stages."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.other: dict[int, float] = {}
        """Seconds of data passes and scoring between stage t and stage t + 1."""

    def handle(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Step):
            self.first.setdefault(event.stage, time.perf_counter())
            self.last[event.stage] = time.perf_counter()
        elif isinstance(event, Scored):
            self._add(event.stage, event.seconds)
        elif isinstance(event, StageEnd):
            self._add(event.stage, event.seconds["pass_after"])
            self._add(event.stage - 1, event.seconds["pass_before"])

    def _add(self, stage: int, seconds: float) -> None:
        self.other[stage] = self.other.get(stage, 0.0) + seconds

    def pauses(self) -> list[float]:
        """One for each stage but the last."""
        stages = sorted(self.first)
        return [self.first[t + 1] - self.last[t] - self.other[t] for t in stages[:-1]]


def main() -> None:
    """Run the demo's four tasks with few examples and print the pauses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0, help="0 = in this process")
    parser.add_argument("--model", default="packaged", help="packaged, a folder or a hub id")
    parser.add_argument("--method", default="gain_lora")
    chosen = parser.parse_args()
    fields = {
        "order": "demo",
        "model": {"name": chosen.model},
        "method": {"name": chosen.method},
        "data": {"train_examples": 16, "test_examples": 4, "max_source_tokens": 64},
        "train": {"batch_size": 4, "log_every": 1},
        "eval": {"forward": False},
        "workers": chosen.workers,
    }
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        places = raycl.Options(
            store=str(Path(folder, "store")),
            tracking=f"sqlite:///{folder}/mlflow.db",
            output=str(Path(folder, "output")),
        )
        raycl.run_sequence(raycl.resolve("laptop", [fields]), places, [clock])
    for stage, seconds in enumerate(clock.pauses(), start=1):
        print(f"after stage {stage}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
