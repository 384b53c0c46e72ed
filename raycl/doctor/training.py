"""What takes the optimizer's steps: DeepSpeed, and whether every engine gives the same gradients here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from raycl.doctor.finding import Finding, Places
from raycl.errors import SetupError, first_line

GRADIENT_SECONDS = 300.0
"""Longest wait for the two processes of the gradient check, which take about 20 s on two idle cores."""
INSTALL = "`pip install 'deepspeed>=0.19.8,<0.20'`; or run one worker at train.zero_stage=0, which does without"
WRONG = (
    "do not train with that engine: choose another train.zero_stage, or train.engine=torch (stage 0); then make the "
    "versions of torch and DeepSpeed those of requirements.lock (`make setup`) and check again"
)


def deepspeed(places: Places) -> Finding:
    """Whether DeepSpeed can be imported, its version, and what it would have to build."""
    from raycl.models.precision import gpus
    from raycl.train.engine_deepspeed import import_deepspeed
    from raycl.train.workers import local_device

    try:
        version = import_deepspeed(local_device()).__version__
    except (SetupError, ImportError) as error:
        # One process does without it; several GPUs are several processes.
        return Finding("deepspeed", "failed" if len(gpus()) > 1 else "warning", first_line(error), INSTALL)
    builds = (
        "an op would be built where one is needed" if gpus() else "its op is not needed on a CPU: gloo serves alone"
    )
    return Finding("deepspeed", "ok", f"{version}; {builds}")


def gradients(places: Places) -> Finding:
    """Whether two processes get the same gradients from plain torch and from DeepSpeed at ZeRO 0, 1, 2 and 3."""
    from raycl.train.agreement import ENGINES, disagreements, read_gradients

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = _ranks(folder)
        try:
            left = read_gradients(folder)
        except FileNotFoundError:
            return Finding("gradients", "failed", f"two processes did not end: {said}", INSTALL)
    wrong = [f"{kind}: {one}" for rank in left for kind, made in rank.items() for one in disagreements(made)]
    if wrong:
        return Finding("gradients", "failed", "; ".join(dict.fromkeys(wrong)), WRONG)
    names, precisions = ", ".join(ENGINES), " and ".join(left[0])
    return Finding("gradients", "ok", f"two processes, two passes a loss: {names} agree in {precisions}")


def _ranks(folder: Path) -> str:
    """Run the processes of the check, on the CPU; the last line that they said. Ends them after `GRADIENT_SECONDS`."""
    from raycl.train.agreement import WORLD, on_cpu

    log = folder / "log"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "raycl.train.agreement"]
        ranks = [
            subprocess.Popen([*command, str(rank), str(folder)], stdout=stream, stderr=stream, env=on_cpu())
            for rank in range(WORLD)
        ]
        late = _wait(ranks)
    lines = log.read_text(errors="replace").strip().splitlines() or ["they said nothing"]
    return f"no end after {GRADIENT_SECONDS:g} s ({lines[-1]})" if late else lines[-1]


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Wait for all, or for the first that fails; whether the patience ran out. None is left running."""
    deadline = time.monotonic() + GRADIENT_SECONDS
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > deadline:
                return True
            if any(rank.poll() for rank in ranks):
                return False
            time.sleep(0.1)
        return False
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
