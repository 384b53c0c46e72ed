"""A row of benchmarks/results/performance.md: what is measured, the bar it is held to, and the figure once measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from raycl.models.precision import torch_version
from raycl.state.environment import describe_environment
from raycl.train.workers import cores


@dataclass(frozen=True)
class Bar:
    """A limit: met by values up to it, or from it on."""

    limit: float
    unit: str = ""
    """` s`, ` %`, or `x` and what of."""
    side: Literal["most", "least"] = "most"

    def met(self, value: float) -> bool:
        """Whether a value meets it."""
        return value <= self.limit if self.side == "most" else value >= self.limit

    def __str__(self) -> str:
        """`<= 1.03 x floor`."""
        return f"{'≤' if self.side == 'most' else '≥'} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Figure:
    """What a measurement gave."""

    value: float
    precision: str = "fp32"
    """Of the base model."""
    threads: int = field(default_factory=cores)
    """Of the measured process."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping: what the value was made of."""


@dataclass(frozen=True)
class Cell:
    """One row; `name` says what is measured, and names its file."""

    name: str
    what: str
    """The row in words."""
    bar: Bar
    measure: Callable[[], Figure]
    version: int = 1
    """Raised when the measurement changes: figures of the old one then count as not measured."""


def in_processes(measure: Callable[[], Figure], processes: int = 3) -> Figure:
    """The figure with the middle value of so many processes, one after another, with the values of all.

    Where a process's memory comes to lie moves the time of a step by a tenth and more, the same in all of its rounds.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        figures = sorted((pool.submit(measure).result() for _ in range(processes)), key=lambda one: one.value)
    middle, values = figures[len(figures) // 2], [one.value for one in figures]
    note = f"{middle.details['note']}; the middle of {processes} processes: {', '.join(f'{one:.3f}' for one in values)}"
    return replace(middle, details={**middle.details, "note": note, "values": values})


def conditions(figure: Figure, load: tuple[float, float]) -> dict[str, Any]:
    """What a figure was measured on; `load` is the machine's before and after, processes that want to run."""
    environment = describe_environment()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "hardware": gpu or f"{processor()}, {os.cpu_count()} cores",
        "threads": figure.threads,
        "precision": figure.precision,
        "torch": torch_version(),
        "git": environment["git"],
        "date": date.today().isoformat(),
        "load": [round(one, 2) for one in load],
    }


def processor() -> str:
    """The CPU's name as the system has it; its architecture where it has none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine
