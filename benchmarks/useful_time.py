"""Seconds that a sequence spends in forward passes, backward passes, the optimizer and generation, beside all the rest:

    python benchmarks/useful_time.py FOLDER [--method gain_lora] [--train 64] [--test 16]

Runs the tasks of FOLDER's tasks.yaml on the packaged model in this process, and prints the seconds as JSON. What
the process takes beyond them is the share of benchmarks/performance.py that is not useful.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import raycl
from raycl.train.engine_deepspeed import DeepSpeedEngine
from raycl.train.engine_torch import TorchEngine
from raycl.train.generation import Decoder
from raycl.train.module import StageModule
from raycl.train.passes import DataPass

PARTS: dict[str, list[tuple[type[Any], str]]] = {
    "backward": [(TorchEngine, "backward"), (DeepSpeedEngine, "backward")],
    "optimizer": [(TorchEngine, "step"), (DeepSpeedEngine, "step")],
    "forward": [(StageModule, "forward")],
    "generation": [(Decoder, "_batch")],
    "data passes": [(DataPass, "run")],
}
"""What is timed; a data pass is forward passes and the sums that methods take of them, so it counts as forward."""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="gain_lora")
    parser.add_argument("--train", type=int, default=64)
    parser.add_argument("--test", type=int, default=16)
    given = parser.parse_args()
    seconds = dict.fromkeys(PARTS, 0.0)
    for part, places in PARTS.items():
        for kind, name in places:
            setattr(kind, name, timed(getattr(kind, name), seconds, part))
    data = {"stream": str(given.folder / "tasks.yaml"), "train_examples": given.train, "test_examples": given.test}
    fields: dict[str, Any] = {"data": data, "method": {"name": given.method}, "eval": {"forward": False}}
    options = raycl.Options(
        store=str(given.folder / "store"),
        tracking=f"sqlite:///{given.folder}/mlflow.db",
        output=str(given.folder / "out"),
    )
    raycl.run_sequence(raycl.resolve("demo", [fields]), options, [])
    print(json.dumps(seconds))


def timed(call: Any, seconds: dict[str, float], part: str) -> Any:
    """The same call, whose time is added up; of calls in one another the outer one counts."""

    @functools.wraps(call)
    def timed_call(*args: Any, **kwargs: Any) -> Any:
        before, started = sum(seconds.values()), time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            inside = sum(seconds.values()) - before
            seconds[part] += time.perf_counter() - started - inside

    return timed_call


if __name__ == "__main__":
    main()
