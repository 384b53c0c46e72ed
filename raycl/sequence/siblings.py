"""Siblings: stages of different sequences with one parent, task and data, which one process can train at once.

They differ in learning rate, weights of penalties, seed: in what decides neither how many steps there are nor of how many
rows. `raycl.train.pack` trains them; what each ends with is stored under its own key, as if it had been trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from raycl.errors import UserError
from raycl.files import Json
from raycl.sequence.making import Making
from raycl.sequence.plan import StagePlan
from raycl.sequence.turns import turn
from raycl.sequence.worker import SequenceWorker
from raycl.state.keys import content_key
from raycl.train.ops import builds_reported

STEPS = ("epochs", "batch_size", "micro_batch_size", "batches", "keep", "holdout")
"""Training settings that siblings have in common."""
METHOD = ("name", "over", "targets")
"""Settings of the method that they have in common."""
Sibling = tuple[SequenceWorker, StagePlan]


def packs(sequences: Sequence[Sequence[StagePlan]], most: int) -> dict[str, list[tuple[int, int]]]:
    """Key of each stage -> the stages that it is to be trained with, itself among them, at most `most`.

    Each is named by the first of the `sequences` that has it (its place) and its place in that. A stage without siblings is
    left out.
    """
    families: dict[str, dict[str, tuple[int, int]]] = {}
    for sequence, stages in enumerate(sequences):
        for place, stage in enumerate(stages):
            if "train" in stage.recipe:
                families.setdefault(_family(stage.recipe), {}).setdefault(stage.key, (sequence, place))
    found: dict[str, list[tuple[int, int]]] = {}
    for family in families.values():
        keys = list(family)
        for start in range(0, len(keys), most):
            pack = keys[start : start + most]
            if len(pack) > 1:
                members = [family[key] for key in pack]
                found |= dict.fromkeys(pack, members)
    return found


def _family(recipe: Json) -> str:
    """What siblings have in common, as one key."""
    common = {name: recipe[name] for name in ("schema", "model", "task", "lengths", "stage", "parent")}
    for room, names in (("train", STEPS), ("method", METHOD)):
        common[room] = {name: recipe[room][name] for name in names if name in recipe[room]}
    if common["train"].get("batches") == "equal_tokens":
        common["seed"] = recipe["seed"]  # it decides how many rows a step has
    return content_key(common)


@dataclass
class Together:
    """Brings a sequence forward as its worker does, and trains with each stage the siblings of it that are missing."""

    worker: SequenceWorker
    siblings: Callable[[StagePlan], Iterable[Sibling]]
    """The other stages of a stage's pack, each with a worker of its sequence in this process."""
    trained: bool = field(default=False, init=False)
    """Whether the last stage was trained here."""
    note: str = field(default="", init=False)
    """Why stages are trained one by one; empty = they are not."""

    def advance(self, stage: StagePlan) -> bool:
        """Make sure that a stage and its row of scores are stored; whether anything was to do."""
        mine = self._make_together(stage)
        worked = self.worker.advance(stage)
        self.trained = mine or self.worker.trained
        return mine or worked

    def score(self, row: int) -> bool:
        """Make sure that a row of scores is stored; whether anything was to do."""
        return self.worker.score(row)

    def _make_together(self, stage: StagePlan) -> bool:
        """Train a missing stage with its missing siblings that nobody else makes, and publish them; whether the stage was.

        Where there are none, and where they cannot be packed, it is left to be trained alone; so is a stage whose training
        failed in the pack, whose own sequence then hears why.
        """
        if self.note or self.worker.store.has(stage.key):
            return False
        with ExitStack() as turns:
            makings: list[tuple[SequenceWorker, Making]] = []
            for worker, one in [(self.worker, stage), *self.siblings(stage)]:
                right = turns.enter_context(turn(worker.store, worker.workers, one, worker.report, wait=not makings))
                if right is not None:
                    makings.append((worker, worker.begin(one, right)))
                elif not makings:
                    return False
            return len(makings) > 1 and self._run(makings)

    def _run(self, makings: Sequence[tuple[SequenceWorker, Making]]) -> bool:
        """Train a pack, and publish what came out; whether the first stage of it was published."""
        from raycl.adapters.packed import CannotPack
        from raycl.train.pack import Pack  # brings PEFT, which reading a stored sequence does without

        try:
            with builds_reported():
                parts = Pack([making.run for _, making in makings]).run()
        except CannotPack as reason:
            self.note = str(reason)
            return False
        published = [False] * len(makings)
        for place, ((worker, making), part) in enumerate(zip(makings, parts, strict=True)):
            with suppress(UserError):
                if part is not None:
                    published[place] = worker.end(replace(making, packed=len(makings)), part)
        return published[0]
