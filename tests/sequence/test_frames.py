"""How far it is from the command to a training step: whoever debugs one reads this many frames."""

from __future__ import annotations

import inspect
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from tests.kit.commands import JOB, Commands
from tests.kit.places import ROOT
from tests.kit.runs import MakeFlags

MOST_FRAMES = 12


def run_and_look(folder: Path, arguments: list[str]) -> None:
    """Run jobs/sequence.py up to the first training step and note the checkout's frames above it, outermost first."""
    from raycl.train.loop import TrainLoop

    def looking(self: TrainLoop, micro_batches: Any) -> None:
        places = [(Path(frame.filename), frame.function) for frame in reversed(inspect.stack()[1:])]
        inside = [f"{file.relative_to(ROOT)}: {name}" for file, name in places if is_ours(file)]
        (folder / "frames.json").write_text(json.dumps(inside))
        os._exit(0)

    TrainLoop.train_step = looking
    sys.argv = [str(JOB), *arguments]
    runpy.run_path(str(JOB), run_name="__main__")


def is_ours(file: Path) -> bool:
    """Whether a file is part of raycl or of its jobs."""
    return file.is_relative_to(ROOT / "raycl") or file.is_relative_to(ROOT / "jobs")


def test_few_frames_lie_between_the_command_and_a_training_step(
    commands: Commands, flags: MakeFlags, tmp_path: Path
) -> None:
    """In local mode: from jobs/sequence.py to `TrainLoop.train_step`, which is counted too."""
    arguments = flags(tmp_path / "store", "sin_lora", "llama", "roget", eval__forward="false")
    done = commands.call(run_and_look, arguments, MLFLOW_TRACKING_URI="off").wait()
    assert done.code == 0, done.err
    frames = [*json.loads((done.folder / "frames.json").read_text()), "raycl/train/loop.py: train_step"]
    assert frames[0] == "jobs/sequence.py: <module>"
    assert len(frames) <= MOST_FRAMES, "\n".join(frames)
