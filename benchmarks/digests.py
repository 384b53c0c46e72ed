"""Digests of every stage of the shared test matrix: the proof that a refactoring changes no result.

    python benchmarks/digests.py before.json     on one commit
    python benchmarks/digests.py after.json      on another one, on the same machine; then compare the files

`--engine deepspeed` and `--engine torch` on one commit show that both take the same steps.

Three stages of every case in `tests/kit/cases.py` are trained on the tiny Llama and the tiny T5, in fp32 and one thread,
which takes about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from raycl.state.stage_state import StagePart
from raycl.testing.probes import tensors_of
from raycl.testing.tiny import FAMILIES, load_tiny, save_tiny
from raycl.testing.toys import make_toy_task, run_sequence_in_memory
from tests.kit.cases import CASES


def digest(part: StagePart) -> str:
    """SHA-256 over names, types and bytes of a part's tensors, its task and its facts."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors_of(part).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().clone(memory_format=torch.contiguous_format).numpy().tobytes())
    found.update(json.dumps([part.task, part.facts], sort_keys=True).encode())
    return found.hexdigest()


def digests(engine: str) -> dict[str, list[str]]:
    """`family/case` -> the digests of its three stages."""
    torch.set_num_threads(1)
    tasks = [make_toy_task(number, spread=3) for number in (1, 2, 3)]
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            save_tiny(family, Path(folder, family))
            model = load_tiny(Path(folder, family), "fp32")
            for name, case in CASES.items():
                torch.manual_seed(0)
                results = run_sequence_in_memory(model, case.params, tasks, **case.train | {"engine": engine})
                found[f"{family}/{name}"] = [digest(result.part) for result in results]
                print(f"{family}/{name}  {found[f'{family}/{name}'][-1][:12]}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="JSON file to write")
    parser.add_argument("--engine", choices=["deepspeed", "torch"], default="deepspeed", help="as train.engine")
    arguments = parser.parse_args()
    Path(arguments.output).write_text(json.dumps(digests(arguments.engine), indent=1) + "\n")
