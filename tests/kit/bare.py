"""Runs a program in an interpreter that lacks everything but torch, transformers, peft, safetensors and pydantic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

ABSENT = (
    *("ray", "deepspeed", "mlflow", "datasets", "pyarrow", "pandas", "matplotlib", "sacrebleu", "rouge_score", "nltk"),
    *("sklearn", "scipy", "tenacity", "optuna", "gguf"),
)
"""What is not there beside torch, transformers, peft, safetensors and pydantic, and what those bring."""
HIDING = """
import runpy
import sys
from importlib.machinery import PathFinder

absent, find = set(sys.argv.pop(1).split(",")), PathFinder.find_spec


def found(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in absent else find(name, path, target)


PathFinder.find_spec = classmethod(found)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def bare(module: str, arguments: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m module` in an interpreter that finds none of `ABSENT`."""
    command = [sys.executable, "-c", HIDING, ",".join(ABSENT), module, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=400)
