"""Command lines of small, quick sequences, and what they leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import yaml

from raycl.state.stage_state import StagePart
from raycl.state.store import Store

METHODS = {
    "sin_lora": {"name": "sin_lora", "rank": 2},
    "o_lora": {"name": "o_lora", "rank": 2},
    "per_task": {"name": "per_task", "rank": 2},
    "route_lora": {"name": "route_lora", "rank": 2},
    "gain_inf": {"name": "gain_lora", "over": "inf_lora", "rank": 2, "gate_hidden": [8], "epsilon": 0.9},
    "gain_o": {"name": "gain_lora", "over": "o_lora", "rank": 2, "gate_hidden": [8]},
}
"""Method settings by a short name."""


class MakeFlags:
    """Makes the arguments of small, quick sequences in this process (local mode)."""

    def __init__(self, models: dict[str, Path], scratch: Path) -> None:
        self.models, self.scratch, self.count = models, scratch, 0

    def __call__(
        self,
        store: Path,
        method: str | dict[str, object] = "sin_lora",
        family: str = "llama",
        order: str = "demo",
        **fields: object,
    ) -> list[str]:
        """`method` is a name of `METHODS`, or a method's settings; `fields` are run-spec fields with `__` for the dot, on
        top of the small settings."""
        self.count += 1
        path = self.scratch / f"{self.count}.yaml"
        path.write_text(yaml.safe_dump(self.spec(method, family)))
        sets = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
        output = store.parent / f"output-{self.count}"
        flags = ["--order", order, "--config", path, "--store", store, "--output", output, "--preset", "laptop"]
        return [*map(str, flags), *(part for text in sets for part in ("--set", text))]

    def spec(self, method: str | dict[str, object], family: str) -> dict[str, object]:
        """Run-spec fields: 16 examples a task, four steps."""
        return {
            "model": {"name": str(self.models[family]), "precision": "fp32"},
            "data": {
                "source": "demo",
                "train_examples": 16,
                "test_examples": 8,
                "max_source_tokens": 48,
                "max_target_tokens": 20,
            },
            "method": METHODS[method] if isinstance(method, str) else method,
            "train": {"lr": 1e-2, "batch_size": 4, "log_every": 1},
            "eval": {"batch_size": 8, "forward": True},
            "workers": 0,
        }


def digests(folder: os.PathLike[str]) -> dict[str, str]:
    """Key -> content digest of every stage in a store."""
    store = Store(str(folder))
    return {key: store.manifest(key).digest for key in store.stage_keys()}


def assert_same_part(one: StagePart, other: StagePart, close: float) -> None:
    """Branch, gates and facts agree; of a basis the projector, since its columns are unique only up to rotation."""
    assert one.facts == other.facts
    assert set(one.tensors) == set(other.tensors)
    assert (one.branch is None) == (other.branch is None)
    for factor in ("a", "b") if one.branch else ():
        mine, theirs = getattr(one.branch, factor), getattr(other.branch, factor)
        assert set(mine) == set(theirs)
        for path in mine:
            torch.testing.assert_close(mine[path], theirs[path], rtol=0, atol=close, msg=f"branch {factor} {path}")
    for name, value in one.tensors.items():
        theirs = other.tensors[name]
        if "basis/" in name:
            value, theirs = value @ value.T, theirs @ theirs.T
        torch.testing.assert_close(value, theirs, rtol=0, atol=close, msg=name)
