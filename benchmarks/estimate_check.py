"""The cost model against a run: for each phase what `raycl estimate` says beforehand, and what manifests say afterwards.

    python benchmarks/estimate_check.py                     # a small run of the demo with the packaged model
    python benchmarks/estimate_check.py --run SPEC STORE     # a run that is there: its spec.json, its store

The estimate is made from matrix products timed on this machine, as if nobody else used it: a busy machine shows in the
measured seconds alone, so its load is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from raycl.analysis.cost import PHASES, Phase
from raycl.analysis.outlook import Outlook
from raycl.methods.registry import method_params
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.estimate import Asked, estimate
from raycl.sequence.history import stored_seconds
from raycl.sequence.job import make_job
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec, parse
from raycl.state.store import Store

SMALL: dict[str, Any] = {"order": "demo", "data": {"train_examples": 48, "test_examples": 16}, "workers": 0}
"""Four short stages."""
WANTED = 0.25
"""How far an estimate may be off."""


def main() -> None:
    """Run or read, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", nargs=2, metavar=("SPEC", "STORE"))
    parser.add_argument("--method", default="gain_lora")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        if given.run:
            spec = parse(json.loads(Path(given.run[0]).read_text(encoding="utf-8")), method_params)
            store = given.run[1]
        else:
            spec, store = resolve("demo", [SMALL, {"method": {"name": given.method}}]), f"{empty}/store"
        before = estimate(spec, Options(store=f"{empty}/none"), Asked()).outlook
        if not given.run:
            run_sequence(spec, Options(store=store, tracking="off", output=f"{empty}/output"))
        print(f"load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
        print(before.rates.source if before.rates else "")
        table(before, measured(spec, store))


def measured(spec: RunSpec, store: str) -> dict[Phase, float]:
    """Seconds of each phase over all stages, as their manifests have them; what is neither of the three is left out."""
    job = make_job(spec, Store(store))
    found: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
    for stage in job.plan.stages:
        seconds = job.store.manifest(stage.key).end.seconds
        found["train"] += seconds["train"]
        found["passes"] += seconds["pass_before"] + seconds["pass_after"]
    found["score"] = sum(stored_seconds(job.store, job.plan).values())
    return found


def table(before: Outlook, after: dict[Phase, float]) -> None:
    """A line for each phase and one for all."""
    rows = [(phase, before.phase_seconds(phase) or 0.0, after[phase]) for phase in PHASES]
    rows.append(("in all", sum(row[1] for row in rows), sum(row[2] for row in rows)))  # pyright: ignore[reportArgumentType]
    print(f"{'phase':10}{'estimate':>10}{'measured':>10}{'ratio':>8}")
    for name, estimated, real in rows:
        ratio = estimated / real if real >= 1 else float("nan")
        mark = "" if real < 1 or abs(ratio - 1) <= WANTED else f"  more than {WANTED:.0%} off"
        print(f"{name:10}{estimated:9.1f}s{real:9.1f}s{ratio:8.2f}{mark}")


if __name__ == "__main__":
    main()
