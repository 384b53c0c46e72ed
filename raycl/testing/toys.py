"""Toy tasks, and stages of them in memory: no Ray, no store."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raycl.testing.tiny import LABELS, WORDS

if TYPE_CHECKING:
    from raycl.events import StageEvent
    from raycl.methods.common.base import Method
    from raycl.models.load import LoadedModel
    from raycl.spec import MethodParams, RunSpec
    from raycl.state.stage_state import StagePart, StageState
    from raycl.tasks.task import Task


def make_toy_task(number: int, distinct: int = 4, repeats: int = 4, words: int = 4, spread: int = 0) -> Task:
    """Task `number` (1..5): `distinct` prompts of `words` words that no other task uses, each `repeats` times.

    The first word decides the answer. With `spread`, a prompt is longer by up to that many words.
    """
    from raycl.tasks.task import Example, Task

    draw = random.Random(number)
    rows = []
    for index in range(distinct):
        length = words - 1 + draw.randint(0, spread)
        first = index % WORDS
        rest = [f"t{number}w{draw.randrange(WORDS)}" for _ in range(length)]
        body = " ".join([f"t{number}w{first}", *rest])
        rows.append((f"t{number}head ", body, f" t{number}tail", (LABELS[index % 2],)))
    examples = tuple(Example(f"{i}", *row) for i, row in enumerate(rows * repeats))
    return Task(f"toy{number}", "toy", "exact_match", LABELS, examples, examples[:distinct], {})


@dataclass
class StageResult:
    """One stage run in memory."""

    part: StagePart
    state: StageState
    """The state after the stage."""
    method: Method
    log: list[dict[str, Any]]
    events: list[dict[str, Any]]
    trainable: list[str]
    """Names of what the optimizer got, in the stage module."""
    before: dict[str, Any]
    """Copies of all parameters and buffers of the stage module just before the first step."""
    after: dict[str, Any]
    """The same right after the last step."""
    gauges: dict[str, float]
    """What was measured of the stage beside what the method measures."""
    probes: list[Any] = field(default_factory=list)
    """What `probe` returned just before the first step and right after the last one."""


def run_stage_in_memory(
    model: LoadedModel,
    method: dict[str, Any] | Method,
    tasks: Sequence[Task],
    state: StageState | None = None,
    *,
    seed: int = 0,
    probe: Callable[[Any, Any], Any] | None = None,
    **train: Any,
) -> StageResult:
    """Run the stage that follows `state` on tasks[state.stage], without Ray and without a store.

    `method` is the method's parameters, or a ready method object; `train` overrides fields of TrainSpec.
    `probe(stage module, encoder)` runs in eval mode, just before and right after the training.
    """
    from raycl.methods.common.base import StageInfo
    from raycl.methods.registry import build, method_class, method_params
    from raycl.state.stage_state import StageState
    from raycl.train.batches import Encoder
    from raycl.train.workers import Workers

    state = state or StageState()
    task = tasks[state.stage]
    if isinstance(method, dict):
        params = method_params(method["name"]).model_validate(method)
        alone = method_class(method["name"]).alone(params)
        method = build(params, StageInfo(state.stage + 1, len(tasks), task.name, seed, alone))
    spec = toy_spec(model, method.params, tasks, seed, train)
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    events: list[StageEvent] = []
    run = watched_run(probe)(model, method, state, task, spec, encoder, Workers(), events.append)
    part = run.run()
    seen = run.trainable_names, run.before, run.after, run.gauges, run.probes
    return StageResult(part, state.append(part), method, in_json(run.log), in_json(events), *seen)


def toy_spec(
    model: LoadedModel, params: MethodParams, tasks: Sequence[Task], seed: int, train: Mapping[str, Any]
) -> RunSpec:
    """The run spec of a stage in memory; `train` overrides fields of TrainSpec."""
    import torch

    from raycl.sections import EvalSpec, ModelSpec, TrainSpec
    from raycl.spec import RunSpec

    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 8, "log_every": 1} | dict(train)
    bf16 = model.backbone.model.dtype == torch.bfloat16
    return RunSpec(
        order="toy",
        tasks=[one.name for one in tasks],
        model=ModelSpec(name=model.name, precision="bf16" if bf16 else "fp32"),
        method=params,
        train=TrainSpec.model_validate(settings),
        eval=EvalSpec(batch_size=8),
        seed=seed,
        workers=0,
    )


def watched_run(probe: Callable[[Any, Any], Any] | None) -> Any:
    """A `StageRun` that notes what its training begins and ends with; `probe` as in `run_stage_in_memory`."""
    import torch

    from raycl.train.stage import StageRun

    class WatchedRun(StageRun):
        def train(self, ready: Any) -> None:
            module = ready.module
            self.probes = []
            self.trainable_names = sorted(name for name, p in module.named_parameters() if p.requires_grad)
            self._look(module)
            self.before = copies(module)
            super().train(ready)
            self.after = copies(module)
            self._look(module)

        def _look(self, module: Any) -> None:
            if probe is not None:
                with torch.no_grad():
                    self.probes.append(probe(module.eval(), self.encoder))

    return WatchedRun


def run_sequence_in_memory(
    model: LoadedModel, method: dict[str, Any], tasks: Sequence[Task], **settings: Any
) -> list[StageResult]:
    """Run all stages of a sequence; `settings` as for `run_stage_in_memory`."""
    results: list[StageResult] = []
    for _ in tasks:
        state = results[-1].state if results else None
        results.append(run_stage_in_memory(model, method, tasks, state, **settings))
    return results


def in_json(events: Sequence[StageEvent]) -> list[dict[str, Any]]:
    """Events in their JSON form, which tests look at."""
    from raycl.events import to_json

    return [to_json(event) for event in events]


def copies(module: Any) -> dict[str, Any]:
    """Copies of all parameters and buffers of a module, by name."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
