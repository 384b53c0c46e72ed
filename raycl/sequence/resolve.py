"""From what the user said to a validated run spec."""

from __future__ import annotations

from raycl.errors import SpecError
from raycl.methods.registry import method_class, method_params
from raycl.models.load import family
from raycl.presets import PRESETS, merge
from raycl.spec import Json, ModelSpec, RunSpec, parse
from raycl.tasks.orders import CUSTOM, resolve_order


def resolve(preset: str, layers: list[Json], gpus: int, kind: str | None = None) -> RunSpec:
    """Validate the layers (weakest first) on top of a preset; `auto` is laptop without a GPU and paper with one.

    `kind` is the model's type (t5, llama, ...), for the paper's settings; none = read it from the model's configuration,
    for which a hub model is fetched. Raises SpecError that lists every problem.
    """
    if preset == "auto":
        preset = "paper" if gpus else "laptop"
    if preset not in PRESETS:
        raise SpecError(f"--preset {preset!r}: unknown; allowed: auto, {', '.join(PRESETS)}")
    said = merge(*layers)
    order, tasks = resolve_order(str(said.get("order", "")))
    said |= {"order": order, "tasks": list(tasks), "preset": preset}
    if order == "demo":
        said = merge({"data": {"source": "demo"}}, said)
    base = merge(PRESETS[preset], {"method": {"name": "gain_lora"}})
    if preset == "paper":
        base = merge(base, _paper_settings(merge(base, said), order, kind))
    spec = parse(merge(base, said), method_params)
    _check_order(spec)
    return _with_precision(spec, gpus)


def _with_precision(spec: RunSpec, gpus: int) -> RunSpec:
    """`auto` as what it means here: keys hold what was computed with, never how it was chosen."""
    if spec.model.precision != "auto":
        return spec
    from raycl.models.precision import native_precision

    model = spec.model.model_copy(update={"precision": native_precision(gpus)})
    return spec.model_copy(update={"model": model})


def _paper_settings(values: Json, order: str, kind: str | None) -> Json:
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
    if spec.data.source == "demo" and spec.order != "demo" and not spec.order.startswith(CUSTOM):
        raise SpecError(f"order {spec.order!r} needs the benchmark's data; `demo` data only serve --order demo")
    if spec.train.checkpoint_every and spec.train.zero_stage:
        raise SpecError(
            f"train.checkpoint_every: {spec.train.checkpoint_every} works with train.zero_stage=0 only "
            f"(now {spec.train.zero_stage}); set one of them to 0"
        )
    if spec.train.keep == "best" and spec.train.zero_stage == 3:
        raise SpecError(
            "train.keep: 'best' works with train.zero_stage 0, 1 or 2 (now 3); lower it, or keep the last epoch"
        )
