"""Siblings of several sequences in one process: who is trained together, and what becomes of one that fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import raycl
from raycl.errors import DivergedError
from raycl.methods.common.base import Penalty, Step
from raycl.methods.sin_lora import SinLora
from raycl.presets import merge
from raycl.sequence.driver import plan_job
from raycl.sequence.local import worker_here
from raycl.sequence.plan import StagePlan
from raycl.sequence.siblings import Sibling, Together, packs
from raycl.sequence.worker import SequenceWorker
from tests.kit.runs import MakeFlags

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Plant:
    """Sequences that differ in their learning rate, on one store."""

    flags: MakeFlags
    folder: Path
    workers: dict[float, SequenceWorker] = field(default_factory=dict)

    def worker(self, lr: float, **fields: Any) -> SequenceWorker:
        """A worker of its own for a sequence of one task."""
        spec = merge(self.flags.spec("sin_lora", "llama"), {"order": "roget", "train": {"lr": lr}}, fields)
        job = plan_job(raycl.resolve("laptop", [spec]), raycl.Options(store=str(self.folder / "store")))
        return worker_here(job)

    def together(self, lr: float, *others: float) -> tuple[Together, StagePlan]:
        """A sequence whose first stage has the others' as siblings."""
        mates: list[Sibling] = []
        for other in others:
            worker = self.worker(other)
            mates.append((worker, worker.job.plan.stages[0]))
        worker = self.worker(lr)
        return Together(worker, lambda stage: mates), worker.job.plan.stages[0]


@pytest.fixture
def plant(flags: MakeFlags, tmp_path: Path) -> Plant:
    """Of the tiny model and one small task."""
    return Plant(flags, tmp_path)


def packed(together: Together, key: str) -> int | None:
    """How many the manifest says trained at once."""
    return together.worker.store.manifest(key).runtime.get("packed")


def test_missing_siblings_are_trained_and_published_with_a_stage(plant: Plant) -> None:
    """The stage itself is scored; a sibling is left to its own sequence for that."""
    together, stage = plant.together(1e-3, 2e-3, 3e-3)
    assert together.advance(stage) and together.trained and not together.note
    keys = [worker.job.plan.stages[0].key for worker in (plant.worker(lr) for lr in (1e-3, 2e-3, 3e-3))]
    assert [packed(together, key) for key in keys] == [3, 3, 3]
    later, second = plant.together(2e-3, 1e-3, 3e-3)
    assert later.advance(second) and not later.trained  # scored, not trained
    assert not later.advance(second)


def test_what_is_stored_or_in_other_hands_is_left_out(plant: Plant) -> None:
    """One sibling is stored, one is made by another process: what is left is trained without them."""
    plant.worker(2e-3).run()
    busy = plant.worker(3e-3)
    lease = busy.store.lease(busy.job.plan.stages[0].key)
    assert lease.acquire(0)
    together, stage = plant.together(1e-3, 2e-3, 3e-3, 4e-3)
    try:
        assert together.advance(stage)
    finally:
        lease.release()
    last = plant.worker(4e-3).job.plan.stages[0].key
    assert (packed(together, stage.key), packed(together, last)) == (2, 2)
    assert not busy.store.has(busy.job.plan.stages[0].key)


def test_a_stage_without_missing_siblings_is_trained_alone(plant: Plant) -> None:
    """As ever."""
    together, stage = plant.together(1e-3)
    assert together.advance(stage) and together.trained
    assert packed(together, stage.key) is None


def test_a_sibling_that_diverges_is_left_to_its_own_sequence(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are published; its own sequence ends with the reason."""

    def penalties(method: SinLora, step: Step) -> dict[str, Penalty]:
        return {"bad": Penalty(step.logits.sum() * float("nan"), 1.0)} if method.params.alpha == 3.0 else {}

    monkeypatch.setattr(SinLora, "penalties", penalties)
    bad = plant.worker(1e-3, method={"alpha": 3.0})
    together, stage = plant.together(1e-3, 2e-3)
    mates = [*together.siblings(stage), (bad, bad.job.plan.stages[0])]
    together.siblings = lambda stage: mates
    assert together.advance(stage) and packed(together, stage.key) == 3
    assert not bad.store.has(bad.job.plan.stages[0].key)
    with pytest.raises(DivergedError, match="the loss is nan"):
        Together(bad, lambda stage: []).advance(bad.job.plan.stages[0])


def test_only_what_takes_the_same_steps_from_the_same_parent_is_packed(plant: Plant) -> None:
    """Rates, seeds and weights may differ; epochs, tasks and parents may not. Packs are at most so large."""
    alike = [plant.worker(lr).job.plan.stages for lr in (1e-3, 2e-3, 3e-3)]
    seed = plant.worker(1e-3, seed=5).job.plan.stages
    longer = plant.worker(1e-3, train={"epochs": 7}).job.plan.stages
    other = plant.worker(1e-3, order="snippets").job.plan.stages
    found = packs([*alike, seed, longer, other, alike[0]], 3)
    assert found == {stages[0].key: [(0, 0), (1, 0), (2, 0)] for stages in alike}
    assert packs([*alike, seed], 2)[seed[0].key] == [(2, 0), (3, 0)]
    tokens = {"train": {"batches": "equal_tokens"}}
    drawn = [plant.worker(lr, **tokens, seed=at).job.plan.stages for lr, at in ((1e-3, 0), (2e-3, 0), (1e-3, 5))]
    assert packs(drawn, 4) == {stages[0].key: [(0, 0), (1, 0)] for stages in drawn[:2]}  # a seed changes a step's rows
    children = [plant.worker(lr, order="roget,snippets").job.plan.stages for lr in (1e-3, 2e-3)]
    assert children[0][1].key not in packs(children, 4)
