"""From what the user said to a validated run spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from raycl.errors import SpecError, shown, some
from raycl.files import Json
from raycl.methods.registry import method_class, method_params
from raycl.models.families import family
from raycl.presets import PRESETS, merge
from raycl.sections import ModelSpec
from raycl.sequence.per_task import task_layer
from raycl.spec import RunSpec, parse
from raycl.tasks.catalogue import is_published, open_catalogue
from raycl.tasks.orders import resolve_order

T = TypeVar("T")
DEFAULT_METHOD = "gain_lora"


def resolve(preset: str, layers: list[Json], gpus: int = 0, kind: str | None = None) -> RunSpec:
    """Validate the layers (weakest first) on top of a preset.

    The preset `auto` is paper where the cluster has `gpus`, else demo for the order demo and laptop for any other. `kind` is
    the model's type (t5, llama, ...), for the published settings of the preset paper; none = read it from the model's
    configuration, for which a hub model is fetched. Raises SpecError that lists every problem.
    """
    said = merge(*layers)
    found = _Collected()
    order, tasks = found.of(lambda: order_of(said), (UNKNOWN, (UNKNOWN,)))
    found.of(lambda: _check_tasks(layers, said, tasks), None)
    preset = found.of(lambda: _preset(_said_preset(preset, said), order, gpus), "laptop")
    said |= {"order": order, "tasks": list(tasks), "preset": preset}
    if order == "demo":
        said = merge({"data": {"source": "demo"}}, said)
    method = said.get("method")
    name = method.get("name", DEFAULT_METHOD) if isinstance(method, dict) else DEFAULT_METHOD
    base = merge(PRESETS[preset], {"method": {"name": name}})
    if preset == "paper" and not found.problems:
        base = merge(base, _published_settings(merge(base, said), order, kind))
    if not found.problems:
        base = merge(base, task_layer(merge(base, said), base, stream_of(said), tasks))
    spec = found.of(lambda: parse(merge(base, said), method_params), None)
    if found.problems or spec is None:
        raise SpecError("\n".join(found.problems))
    _check_order(spec)
    _check_optimizer(spec)
    return _with_precision(spec, gpus)


UNKNOWN = "unknown"
"""Stands for an order that is not known while the other settings are checked."""


@dataclass
class _Collected:
    """Problems of several steps, so that all are said at once."""

    problems: list[str] = field(default_factory=list)

    def of(self, step: Callable[[], T], instead: T) -> T:
        """What a step gives; `instead` where it raises a SpecError, which is kept."""
        try:
            return step()
        except SpecError as error:
            self.problems.append(str(error))
            return instead


def _check_tasks(layers: Sequence[Json], said: Json, tasks: Sequence[str]) -> None:
    """A written spec repeats the tasks of its order; tasks that say something else would not be heard."""
    layer = next((layer for layer in reversed(layers) if "tasks" in layer), None)
    if layer is None or tasks == (UNKNOWN,) or ("order" in layer and layer["order"] != said.get("order")):
        return  # none, or those of an order that another layer has replaced
    if layer["tasks"] != list(tasks):
        raise SpecError(
            f"tasks: {shown(layer['tasks'])} are not those of the order, which decides ({some(tasks)}); next step: "
            f"name them "
            "as the order, `order: task,task,...`"
        )


def _said_preset(flag: str, said: Json) -> str:
    """The preset of the flag, or the one that a file names where the flag leaves it open."""
    named = said.get("preset")
    return str(named) if flag == "auto" and named not in (None, "none") else flag


def order_of(said: Json) -> tuple[str, tuple[str, ...]]:
    """The order that a run's fields name, its id and its tasks. Raises SpecError for an unknown one, or a bad stream."""
    order = said.get("order")
    if isinstance(order, list) and all(isinstance(name, str) for name in order):
        order = ",".join(order)
    return resolve_order(None if order is None else str(order), stream_of(said))


def stream_of(said: Json) -> str | None:
    """The path of the user's stream, where a run's fields name one."""
    data = said.get("data")
    stream = data.get("stream") if isinstance(data, dict) else None
    return None if stream is None else str(stream)


def preset_layer(preset: str, method: str) -> Json:
    """What a preset sets; with `paper` also the method's published settings for T5 on std-1, the first of the tables.

    Raises SpecError for an unknown preset, ValueError for an unknown method.
    """
    layer = PRESETS[_known(preset)]
    return merge(layer, method_class(method).settings("t5", "std-1")) if preset == "paper" else layer


def _preset(preset: str, order: str, gpus: int) -> str:
    """The preset by its name. Raises SpecError for an unknown one."""
    if preset == "auto":
        return "paper" if gpus else "demo" if order == "demo" else "laptop"
    return _known(preset, "auto, ")


def _known(preset: str, others: str = "") -> str:
    """The name of a preset. Raises SpecError for an unknown one; `others` are the words allowed beside the presets."""
    if preset not in PRESETS:
        raise SpecError(f"--preset {shown(preset)}: unknown; allowed: {others}{', '.join(PRESETS)}")
    return preset


def _with_precision(spec: RunSpec, gpus: int) -> RunSpec:
    """`auto` as what it means here: keys hold what was computed with, never how it was chosen."""
    if spec.model.precision != "auto":
        return spec
    from raycl.models.precision import native_precision

    model = spec.model.model_copy(update={"precision": native_precision(gpus)})
    return spec.model_copy(update={"model": model})


def _published_settings(values: Json, order: str, kind: str | None) -> Json:
    """The chosen method's published settings for the chosen model family and order."""
    model = values["model"]
    try:
        method = method_class(values["method"]["name"])
        kind = kind or family(ModelSpec(name=model.get("name", ""), revision=model.get("revision")))
    except (ValueError, TypeError, KeyError):
        return {}  # validation of the whole spec reports what is wrong
    return method.settings(kind, order)


def _check_order(spec: RunSpec) -> None:
    """A sequence's data must be able to hold its tasks."""
    entries = open_catalogue(spec.data.stream).tasks
    if spec.data.source == "demo" and (needs := [name for name in spec.tasks if is_published(entries[name])]):
        raise SpecError(
            f"data.source: 'demo' does not hold {needs[0]} of the order {shown(spec.order)}; allowed: the tasks of "
            f"the demo, and "
            "those of a stream of your own; next step: give --data FOLDER or --data hub"
        )


def _check_optimizer(spec: RunSpec) -> None:
    """Engine, ZeRO stage, optimizer and what they are to do must go together."""
    if spec.train.checkpoint_every and spec.train.zero_stage:
        raise SpecError(
            f"train.checkpoint_every: {spec.train.checkpoint_every} works with train.zero_stage=0 only "
            f"(now {spec.train.zero_stage}); set one of them to 0"
        )
    if spec.train.engine == "torch" and spec.train.zero_stage:
        raise SpecError(
            f"train.zero_stage: {spec.train.zero_stage} works with train.engine=deepspeed only (now torch); set it to 0, or "
            "let DeepSpeed take the steps"
        )
    if spec.train.keep == "best" and spec.train.zero_stage == 3:
        raise SpecError(
            "train.keep: 'best' works with train.zero_stage 0, 1 or 2 (now 3); lower it, or keep the last epoch"
        )
    if spec.train.compile and spec.train.zero_stage == 3:
        raise SpecError(
            "train.compile: true works with train.zero_stage 0, 1 or 2 (now 3), where a layer's weights are whole; lower "
            "it, or do not compile"
        )
    if spec.train.zero_stage == 3 and not spec.method.passes_are_equal():
        raise SpecError(
            f"train.zero_stage: {spec.method.name} works with 0, 1 or 2 (now 3), since its workers take passes of their "
            "own; lower it"
        )
    if spec.train.optimizer != "muon":
        return
    if not spec.method.trains_matrices():
        raise SpecError(
            f"train.optimizer: 'muon' moves the matrices of LoRA branches as a whole, and {spec.method.name} with these "
            "settings trains none, or parts of them alone; set it to adamw, or take a method that trains branches, such as "
            "inc_lora"
        )
    if spec.train.zero_stage:
        raise SpecError(
            f"train.optimizer: 'muon' works with train.zero_stage=0 only (now {spec.train.zero_stage}), where each worker "
            "holds whole matrices; set train.zero_stage to 0, or train.optimizer to adamw"
        )
