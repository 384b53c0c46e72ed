"""Adapters from elsewhere that are stages of a sequence: whether method, store and model can have them, before all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raycl.adapters.branches import fitted
from raycl.adapters.carriers import widths
from raycl.adapters.targets import chosen
from raycl.errors import SpecError
from raycl.methods.common.lora import LoraParams
from raycl.methods.registry import METHODS, method_class
from raycl.models.load import LoadedModel
from raycl.sequence.plan import Plan
from raycl.spec import MethodParams, RunSpec
from raycl.state.stage_state import Branch
from raycl.state.store import Store


def require_takes(method: MethodParams) -> LoraParams:
    """The method's settings. Raises SpecError where its stages are no branches that could come from elsewhere."""
    if isinstance(method, LoraParams) and method_class(method.name).takes(method):
        return method
    able = [name for name in METHODS if _takes_by_default(name)]
    raise SpecError(
        f"method {method.name}: a stage of it is no branch that could come from elsewhere; allowed: {', '.join(able)}"
    )


def _takes_by_default(name: str) -> bool:
    method = method_class(name)
    return method.takes(method.Params.model_validate({"name": name}))


def require_imports(spec: RunSpec, plan: Plan, store: Store) -> None:
    """Look at every adapter that a stage to be made is to be.

    Raises SpecError for a task that the order lacks, for a method that takes none and for another base model, StoreError for
    one that the store lacks.
    """
    if not spec.imported:
        return
    require_takes(spec.method)
    if absent := sorted(set(spec.imported) - set(spec.tasks)):
        raise SpecError(f"imported.{absent[0]}: is no task of the order; allowed: {', '.join(spec.tasks)}")
    for task, key in _to_take(spec, plan, store).items():
        _, base = store.read_import(key)
        if base != plan.stages[0].recipe["model"]["fingerprint"]:
            raise SpecError(
                f"imported.{task}: was taken in for another base model than {spec.model.name}; next step: give that "
                "model, or take the adapter in again with `raycl import-adapter`"
            )


def require_fits(loaded: LoadedModel, spec: RunSpec, plan: Plan, store: Store) -> None:
    """Raises SpecError for an adapter whose modules or rank the run's settings do not have."""
    problems = [
        f"imported.{task}: {problem}"
        for task, key in _to_take(spec, plan, store).items()
        for problem in misfits(loaded, spec.method, store.read_import(key)[0])
    ]
    if problems:
        raise SpecError("\n".join(problems))


def misfits(loaded: LoadedModel, method: MethodParams, branch: Branch) -> Iterator[str]:
    """Why a branch cannot be a stage of a method on a model, and which settings would have it."""
    shape = require_takes(method).shape
    backbone = loaded.backbone
    sizes = {path: widths(backbone.model.get_submodule(path)) for path in chosen(backbone, shape.targets)}
    try:
        fitted(branch, shape, sizes)
    except ValueError as error:
        modules = sorted({path.rpartition(".")[2] for path in branch.a})
        yield (
            f"does not fit the settings of {method.name}: {error}; next step: a run with --set method.rank={branch.rank} "
            f"--set method.targets=[{','.join(modules)}], or more"
        )


def _to_take(spec: RunSpec, plan: Plan, store: Store) -> Mapping[str, str]:
    """Task -> hash of the adapter, of the stages that are to be made."""
    made = {stage.task for stage in plan.stages if store.has(stage.key)}
    return {task: key for task, key in spec.imported.items() if task not in made}
