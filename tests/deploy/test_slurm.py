"""deploy/slurm.sbatch with stand-ins for SLURM, Ray and raycl: what it starts, in which order, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.places import ROOT

SCRIPT = ROOT / "deploy" / "slurm.sbatch"
SAYS = """#!/bin/bash
echo "{name} $*" >> "$SAID"
{more}
"""
PROGRAMS = {
    "scontrol": 'printf "%s\\n" one two three',
    # Runs what follows its own options, as a step does, until it is told to end.
    "srun": 'sleep 600 & trap \'kill $!; echo "ended $*" >> "$SAID"\' TERM; wait',
    "raycl": 'stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >> "$SAID"; echo "$RAY_ADDRESS $RAY_AUTH_MODE" >> "$SAID"\n'
    '[ "$1" = doctor ] && exit "${DOCTOR:-0}"; trap \'echo stopped >> "$SAID"; exit 130\' TERM\n'
    "for _ in $(seq ${RUNS:-0}); do sleep 0.1; done; exit ${CODE:-0}",
}
"""Program -> what it does beside noting how it was called."""
PYTHON = """#!/bin/bash
case "$*" in
    *secrets*) printf 0123 ;;
    *) n=$(grep -c '^srun' "$SAID"); echo $((n == 0 ? 0 : n == 1 ? 1 : ${NODES:-3})) ;;
esac
"""
"""Makes a token, and counts nodes: as many as steps would have brought up."""


class Job:
    """The script in a folder with stand-ins in its .venv."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, folder / "said"
        (folder / ".venv" / "bin").mkdir(parents=True)
        for name, more in PROGRAMS.items():
            self.program(name, SAYS.format(name=name, more=more))
        self.program("python", PYTHON)

    def program(self, name: str, text: str) -> None:
        """Put a program where the script finds it first."""
        path = self.folder / ".venv" / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """As sbatch starts it."""
        own = {"SAID": self.said, "HOME": self.folder, "SLURM_SUBMIT_DIR": self.folder, "SLURM_JOB_ID": "12345"}
        own |= {
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "2",
            "STORE": "/shared",
        }
        values = {**os.environ, **{name: str(value) for name, value in own.items()}, **environment}
        return subprocess.Popen(
            ["bash", SCRIPT, *arguments], env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def lines(self) -> list[str]:
        """What was called so far."""
        return self.said.read_text().splitlines() if self.said.exists() else []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job to start."""
    return Job(tmp_path)


def test_head_then_workers_then_the_run(job: Job) -> None:
    """A token that only its owner reads, and that is gone at the end; every step is ended."""
    process = job.start("--order", "5 6")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = [line for line in job.lines if line.startswith("srun")]
    head, workers = steps
    assert head.startswith("srun --overlap --nodes=1 --ntasks=1 --nodelist=one ray start --head --block")
    assert "--port=32345" in head and "--num-cpus=16 --num-gpus=2" in head
    assert workers.startswith("srun --overlap --nodes=2 --ntasks=2 --exclude=one ray start --block --address=one:32345")
    calls = [line for line in job.lines if line.startswith("raycl")]
    assert calls == ["raycl doctor --store /shared", "raycl run --store /shared --order 5 6"]
    assert job.lines.count("token 600") == 2 and job.lines.count("one:32345 token") == 2
    assert list((job.folder / ".ray").iterdir()) == []
    wait_until(lambda: len([line for line in job.lines if line.startswith("ended")]) == 2)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what must come; fails after a minute."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"CODE": "2"}, 2, ""),
        ({"DOCTOR": "2"}, 2, ""),
        ({"NODES": "2", "PATIENCE": "1"}, 1, "fewer than 3 Ray nodes answer at one:32345 after 1 s"),
        ({"STORE": ""}, 1, "name the stage store"),
    ],
)
def test_what_fails_ends_the_job_with_its_code(job: Job, environment: dict[str, str], code: int, words: str) -> None:
    """The run's own, that of a machine that is not fit, nodes that do not come, no store; no token stays."""
    process = job.start(**environment)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, words in err) == (code, True), err
    assert not list((job.folder / ".ray").glob("*"))
    assert ("raycl run --store /shared" in job.lines) == ("CODE" in environment)


def test_a_job_that_is_out_of_time_lets_the_run_end_first(job: Job) -> None:
    """SLURM's signal goes to the script, which hands it on and waits."""
    process = job.start(RUNS="600")
    wait_until(lambda: any(line.startswith("raycl run") for line in job.lines))
    # What the stand-in does after it noted its call.
    wait_until(lambda: job.lines.count("one:32345 token") == 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    wait_until(lambda: len([line for line in job.lines if line.startswith("ended")]) == 2)
    first = next(place for place, line in enumerate(job.lines) if line.startswith("ended"))
    assert job.lines.index("stopped") < first
    assert list((job.folder / ".ray").iterdir()) == []
