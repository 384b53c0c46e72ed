"""Tasks that are planned and never trained."""

from __future__ import annotations

from raycl.tasks.task import Example, Task


def planned_task(name: str) -> Task:
    """A task for plans and keys: three rows that are never trained on."""
    rows = tuple(Example(f"{name}/{i}", "Judge.\n", f"text {i}", "\nAnswer:", ("yes",)) for i in range(3))
    return Task(name, "toy", "exact_match", ("yes", "no"), rows, rows[:2], {})
