"""What a finished state can be exported as, and what would make the export another function than the one that is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from raycl.errors import SpecError
from raycl.methods.common.base import InPeft
from raycl.methods.registry import method_class
from raycl.use.heads import Head

Form = Literal["adapter", "model", "routed"]
"""One PEFT adapter; a whole model; or an adapter per task, with a router where the method has one."""
Wanted = Literal["auto", "adapter", "model", "routed"]
"""A form, or `auto`: the first one that is exact."""
EXACT: dict[InPeft, tuple[Form, ...]] = {
    "last": ("adapter", "model"),
    "sum": ("adapter", "model"),
    "fixed": ("adapter", "model"),
    "each": ("routed",),
    "prompt": ("adapter",),
    "weights": ("model",),
    "adapted": (),
    "none": (),
}
"""What a method serves -> the forms that are the same function without raycl."""

GATED_INPUTS = 64
"""Training inputs of a task, at most, over which an approximation averages the weights of branches."""


@dataclass(frozen=True)
class ExportChange:
    """What an export may change in what is served; each costs something, which is measured. Nothing by default."""

    approximate: Literal["mean"] | None = None
    """`mean`: branches that are weighed by the input get the mean of their weights over the tasks' training inputs."""
    compress: int | None = None
    """Rank that an adapter is cut to, by singular values."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers of the files; everything is computed in fp32 or better, and rounded once."""

    @property
    def none(self) -> bool:
        """Whether the export is the served function."""
        return self == ExportChange()


def served_as(head: Head) -> InPeft:
    """What a state's served model is, as its method says."""
    return method_class(head.spec.method.name).in_peft(head.spec.method)


def form_of(head: Head, wanted: Wanted, task: str | None, change: ExportChange) -> Form:
    """The form of an export. Raises SpecError for one that the method does not have, with those it has."""
    if wanted not in get_args(Wanted):
        raise SpecError(f"--form {wanted}: is no form; allowed: {', '.join(get_args(Wanted))}")
    allowed = _allowed(head, task, change)
    if wanted != "auto" and wanted not in allowed:
        raise SpecError(
            f"--form {wanted}: is not what the method {head.spec.method.name} serves; allowed for {head.name}: "
            f"{', '.join(allowed)}; next step: leave --form out" + (", or name one task" if head.needs_task else "")
        )
    form = allowed[0] if wanted == "auto" else wanted
    _require_task(head, form, task, change)
    _require_change(head, form, change)
    return form


def _allowed(head: Head, task: str | None, change: ExportChange) -> tuple[Form, ...]:
    said, name = served_as(head), head.spec.method.name
    weighed = said == "none" and head.spec.method.adapts_modules()
    if change.approximate and not weighed:
        raise SpecError(
            f"--approximate: the method {name} weighs no branches by the input; "
            + ("next step: leave it out, the export is exact" if EXACT[said] else "next step: use `raycl generate`")
        )
    if weighed and change.approximate:
        return ("adapter", "model")
    if said == "adapted":
        raise SpecError(
            f"method {name}: what {head.name} serves is no single LoRA adapter, since every input trains the last one a "
            "little further, from the run's memory; next step: use it with `raycl generate`, or export the run with "
            "method.local_steps=0, which shares its stages and says in its scores what that costs"
        )
    if said == "none":
        raise SpecError(
            f"method {name}: what {head.name} serves is no single LoRA adapter, since "
            + (
                "its branches are weighed anew for each input; next step: use it with `raycl generate`, or export it with "
                "--approximate mean, which says what that costs"
                if weighed
                else "its prompts depend on the input or stand behind it, which PEFT has no form for; next step: use it "
                "with `raycl generate`"
            )
        )
    if head.needs_task and task is None and said != "weights":
        return ("routed",)
    return EXACT[said]


def _require_task(head: Head, form: Form, task: str | None, change: ExportChange) -> None:
    if head.needs_task and form != "routed":
        head.keys(task)
    if task is None:
        return
    if task not in head.spec.tasks:
        raise SpecError(f"--task {task}: is none of {head.name}; allowed: {', '.join(head.spec.tasks)}")
    if not head.needs_task and not change.approximate:
        raise SpecError(
            f"--task {task}: what {head.name} serves is the same for all its tasks; next step: leave it out"
            + ("; the adapter of each is in the export" if form == "routed" else "")
        )


def _require_change(head: Head, form: Form, change: ExportChange) -> None:
    prompts = served_as(head) == "prompt"
    if form == "model" and head.spec.model.quantization != "none":
        raise SpecError(
            f"--form model: {head.name} was trained on a base model in {head.spec.model.quantization}, and merged into the "
            "whole one it would be another function; allowed: --form adapter"
        )
    if change.compress is not None and (form != "adapter" or prompts):
        raise SpecError("--compress: cuts the rank of one LoRA adapter; allowed: with --form adapter of such a method")
    if change.compress is not None and change.compress < 1:
        raise SpecError(f"--compress {change.compress}: is no rank; allowed: 1 or more")
    if change.dtype not in ("fp32", "bf16"):
        raise SpecError(f"--dtype {change.dtype}: is unknown; allowed: fp32, bf16")
    if change.dtype == "bf16" and prompts:
        raise SpecError("--dtype bf16: prompts are exported as they are; allowed: fp32")
