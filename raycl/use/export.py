"""A finished state as files that PEFT or transformers load without raycl: an adapter, one per task, or a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.branches import adapter_config
from raycl.errors import SpecError
from raycl.files import write_whole
from raycl.models.load import LoadedModel, base_place, load_model
from raycl.report.model_cards import Loss
from raycl.sequence.states import States
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL
from raycl.state.part_files import encode_part
from raycl.state.stage_state import Branch, StagePart
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Task
from raycl.train.workers import local_device
from raycl.use.combined import Weights, added, cast, merge_into, read_off, truncated
from raycl.use.forms import GATED_INPUTS, ExportChange, Form, Wanted, form_of, served_as
from raycl.use.heads import Head
from raycl.use.measured import carrying, largest_change, losses, next_logits
from raycl.use.model_card import write_card
from raycl.use.routed import write_router
from raycl.use.served import Served
from raycl.use.soft_prompts import write_prompt

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's `--max-lora-rank` takes."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was written, and what it costs where it is not exact."""

    folder: Path
    form: Form
    adapters: tuple[str, ...] = ()
    """The tasks of the adapters, where there is one for each."""
    rank: int | None = None
    """Of the adapter, the largest one, or of what was merged; none where there was no adapter."""
    losses: tuple[Loss, ...] = ()
    """By task, where the function was approximated or compressed."""
    logits_change: float | None = None
    """The largest change of logits on test prompts by rounding to bf16; none for fp32."""
    change: ExportChange = field(default_factory=ExportChange)

    @property
    def exact(self) -> bool:
        """Whether it is the function that was scored, in fp32."""
        return self.change.none

    @property
    def max_lora_rank(self) -> int | None:
        """What vLLM must be given to take the adapter; none where it takes none of this rank, or there is none."""
        if self.form == "model" or self.rank is None:
            return None
        return next((one for one in VLLM_RANKS if one >= self.rank), None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, sorted."""
        return tuple(sorted(path for path in self.folder.rglob("*") if path.is_file()))


def export(
    head: Head, folder: Path, form: Wanted = "auto", task: str | None = None, change: ExportChange | None = None
) -> Exported:
    """Write a state into `folder`, which must be new or empty, with a model card.

    `task` as in `Head.keys`; with an approximation, the one task that it is for (none = all alike). Raises SpecError for a
    form or a change that the method does not have, and for a folder with something in it, or that is a file.
    """
    change = change or ExportChange()
    chosen = form_of(head, form, task, change)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise SpecError(f"--to {folder}: {there} is a file; next step: give a new folder")
    if there == folder and any(folder.iterdir()):
        raise SpecError(f"--to {folder}: is not empty; next step: give a new folder")
    device = "cpu" if change.none else local_device()
    # A quantised base cannot be written, and is not needed: an adapter is the same numbers.
    exact = {"precision": "fp32", "quantization": "none"}
    loaded = load_model(head.spec.model.model_copy(update=exact), device)
    if loaded.fingerprint != head.model_fingerprint:
        raise SpecError(f"model.name: {loaded.name} is not the model that {head.name} was trained on")
    work = _Work(head, loaded, folder, task, change)
    done = {"adapter": work.adapter, "model": work.model, "routed": work.routed}[chosen]()
    write_card(head, done, loaded, task)
    return done


@dataclass(frozen=True)
class _Work:
    """One export on its base model."""

    head: Head
    loaded: LoadedModel
    folder: Path
    task: str | None
    change: ExportChange

    def adapter(self) -> Exported:
        """One adapter, or the prompt of one task, in the folder itself."""
        done = Exported(self.folder, "adapter", change=self.change)
        if served_as(self.head) == "prompt":
            write_prompt(self.head, self.loaded, self.folder, self.task)
            return done
        branch, lost = self._changed()
        moved = self._rounded([(branch, self.tasks)]) if self._rounds else None
        self._write(self.folder, branch)
        return replace(done, rank=branch.rank, losses=lost, logits_change=moved)

    def model(self) -> Exported:
        """The base model with the branch merged into it, or with the weights that are served; cast once, at the end."""
        done = Exported(self.folder, "model", change=self.change)
        with ExitStack() as stack:
            if served_as(self.head) == "weights":
                stack.enter_context(Served(self.head, self.loaded, self.task))
            else:
                branch, lost = self._changed()
                merge_into(self._model, branch)
                done = replace(done, rank=branch.rank, losses=lost)
            moved = self._cast_model()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._model.save_pretrained(self.folder)
        self.loaded.tokenizer.save_pretrained(self.folder)
        return replace(done, logits_change=moved)

    def routed(self) -> Exported:
        """An adapter or a prompt for each task, and the router where the method has one."""
        names = tuple(self.head.spec.tasks)
        done = Exported(self.folder, "routed", names, change=self.change)
        folders = {name: self.folder / "adapters" / name for name in names}
        if served_as(self.head) == "prompt":
            for name, folder in folders.items():
                write_prompt(self.head, self.loaded, folder, name)
            return done
        branches = self._by_task()
        moved = self._rounded([(branches[task.name], [task]) for task in self.tasks]) if self._rounds else None
        for name, folder in folders.items():
            self._write(folder, branches[name])
        if served_as(self.head) == "each":
            write_router(self.head, self.loaded, self.folder)
        return replace(done, rank=max(one.rank for one in branches.values()), logits_change=moved)

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks that a change is measured on."""
        return load_tasks([self.task] if self.task else list(self.head.spec.tasks), self.head.spec.data)

    @property
    def _model(self) -> Any:
        return self.loaded.backbone.model

    def _changed(self) -> tuple[Branch, tuple[Loss, ...]]:
        """The one branch that is exported, and what it costs where it is not the served function."""
        branch = self._approximated() if self.change.approximate else served_branch(self.head, self.loaded, self.task)
        rank = self.change.compress
        if rank is not None:
            if rank >= branch.rank:
                raise SpecError(f"--compress {rank}: the adapter's rank is {branch.rank}; allowed: less than that")
            branch = truncated(branch, rank)
        if rank is None and not self.change.approximate:
            return branch, ()
        rounded = cast(branch, DTYPES[self.change.dtype])
        return branch, losses(self.head, self.loaded, self.tasks, rounded, self.task)

    def _approximated(self) -> Branch:
        """All branches under the mean of their weights: over the training inputs of a task, and all tasks alike."""
        with Served(self.head, self.loaded, self.task) as served:
            return read_off(served.model, _mean([_mean_weights(served, task) for task in self.tasks]))

    def _by_task(self) -> dict[str, Branch]:
        """The branch that answers each task."""
        if self.head.needs_task:
            return {name: served_branch(self.head, self.loaded, name) for name in self.head.spec.tasks}
        with Served(self.head, self.loaded) as served:
            rule = served.rule
        if rule is None:
            raise SpecError(f"method {self.head.spec.method.name}: says that it routes, and has no rule")
        parts = States(self.head.store, self.head.spec).of(self.head.keys()).parts
        return {task: parts[answer].pair for task, answer in zip(rule.tasks, rule.answers, strict=True)}

    @property
    def _rounds(self) -> bool:
        """Whether numbers are rounded. Where nothing is, no task's data is read: an exact export does without."""
        return self.change.dtype != "fp32"

    def _rounded(self, pairs: Sequence[tuple[Branch, Sequence[Task]]]) -> float:
        """By how much rounding branches changes the logits on their tasks' prompts."""
        return max(self._moved(branch, tasks) for branch, tasks in pairs)

    def _moved(self, branch: Branch, tasks: Sequence[Task]) -> float:
        found = []
        for one in (branch, cast(branch, DTYPES[self.change.dtype])):
            with carrying(self.loaded, one):
                found.append(self._logits(tasks))
        return largest_change(*found)

    def _cast_model(self) -> float | None:
        if not self._rounds:
            return None
        before = self._logits(self.tasks)
        self._model.to(DTYPES[self.change.dtype])
        return largest_change(before, self._logits(self.tasks))

    def _logits(self, tasks: Sequence[Task]) -> list[Tensor]:
        return next_logits(self.head, self.loaded, tasks)

    def _write(self, folder: Path, branch: Branch) -> None:
        """A branch as PEFT's two files."""
        rounded = cast(branch, DTYPES[self.change.dtype])
        config = adapter_config(self.loaded.backbone, rounded, base_place(self.head.spec.model))
        contents = encode_part(StagePart("export", rounded), config)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ADAPTER_CONFIG, ADAPTER_MODEL):
            _put(folder / Path(name).name, contents[name])


def served_branch(head: Head, loaded: LoadedModel, task: str | None = None) -> Branch:
    """The one branch that a state's served function is. Raises SpecError where it is none."""
    said = served_as(head)
    if said == "fixed":
        with Served(head, loaded, task) as served:
            return served.as_one()
    if said not in ("last", "sum"):
        raise SpecError(f"method {head.spec.method.name}: what {head.name} serves is no single LoRA adapter")
    state = States(head.store, head.spec).of(head.keys(task))
    return state.newest.pair if said == "last" else added(state.branches)


def _mean_weights(served: Served, task: Task) -> Weights:
    """The mean weight of each branch over inputs of a task, layer by layer. Raises SpecError where none is weighed."""
    every = max(1, len(task.train) // GATED_INPUTS)
    found = [served.explain(one) for one in task.train[::every][:GATED_INPUTS]]
    layers = [one.layers for one in found if one is not None]
    if not layers:
        raise SpecError(f"--approximate: {served.head.name} weighs no branches; next step: leave it out")
    return _mean(layers)


def _mean(several: Sequence[Weights]) -> Weights:
    """The mean of weights, layer by layer and branch by branch."""
    return {
        path: tuple(sum(column) / len(column) for column in zip(*(one[path] for one in several), strict=True))
        for path in several[0]
    }


def _put(path: Path, content: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(content))
