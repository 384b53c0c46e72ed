"""A LoRA adapter that was trained elsewhere, taken in as a stage of a sequence: read, checked, stored under its own hash."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from raycl.errors import SpecError, StoreError, shown
from raycl.events import Listener
from raycl.files import Json
from raycl.models.fingerprint import fingerprint
from raycl.models.load import base_place, load_model
from raycl.sections import ModelSpec
from raycl.sequence.driver import Options, run_job
from raycl.sequence.imports import misfits, require_takes
from raycl.sequence.job import make_job
from raycl.spec import RunSpec
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL, ContentName
from raycl.state.part_files import decode_part
from raycl.state.stage_state import Branch
from raycl.state.store import Store
from raycl.use.growing import Appended, append
from raycl.use.heads import Head

UNCHANGED = (True, False, "gaussian", "orthogonal", "eva")
"""Values of PEFT's `init_lora_weights` that leave the base model's weights alone."""
ONLY_PLAIN = (
    *("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save", "layer_replication", "use_qalora"),
    *("trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config", "use_bdlora"),
)
"""Settings of PEFT with which an adapter is more than W x + (alpha / rank) B A x, so that none may be on."""


@dataclass(frozen=True)
class ForeignAdapter:
    """A folder as PEFT saves it, from elsewhere."""

    folder: Path
    same_base: bool = False
    """Whether the user says that it was trained on the run's base model, whatever its config names."""


def read_adapter(folder: Path) -> tuple[Branch, str]:
    """A PEFT adapter as a branch in fp32, and the base model that it names. rsLoRA's scale is put into alpha.

    Raises SpecError for a folder without safetensors, and for what is no plain LoRA.
    """
    names: tuple[ContentName, ...] = (ADAPTER_CONFIG, ADAPTER_MODEL)
    paths = {name: folder / Path(name).name for name in names}
    for path in paths.values():
        if not path.is_file():
            raise SpecError(f"{folder}: has no {path.name}; next step: give a folder that PEFT saved, as safetensors")
    try:
        config: Json = json.loads(paths[ADAPTER_CONFIG].read_text(encoding="utf-8"))
        _require_plain(config, paths[ADAPTER_CONFIG])
        contents: dict[ContentName, bytes] = {name: paths[name].read_bytes() for name in names}
        branch = decode_part("import", {}, contents, str(folder)).pair
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"{folder}: cannot be read ({type(error).__name__}: {error})") from None
    except StoreError as error:
        reason = str(error).replace(f"{folder}/adapter/", f"{folder}/").partition(". ")[0]
        raise SpecError(f"{reason}; next step: save the adapter again with PEFT, as safetensors") from None
    alpha = branch.alpha * math.sqrt(branch.rank) if config.get("use_rslora") else branch.alpha
    sides = ({path: value.float() for path, value in side.items()} for side in (branch.a, branch.b))
    a, b = sides
    return replace(branch, alpha=alpha, a=a, b=b), str(config.get("base_model_name_or_path") or "")


def take_in(adapter: ForeignAdapter, spec: RunSpec, store: Store) -> str:
    """Check an adapter against a run's settings, put it into the store, and return its hash.

    Raises SpecError for another base model, for a method whose stages are no branches, and for modules or a rank that the
    method does not have.
    """
    require_takes(spec.method)
    branch, base = read_adapter(adapter.folder)
    if not adapter.same_base:
        _require_base(adapter.folder, base, spec.model)
    loaded = load_model(spec.model.model_copy(update={"quantization": "none"}), "cpu")
    if problem := next(misfits(loaded, spec.method, branch), None):
        raise SpecError(f"{adapter.folder}: {problem}")
    return store.write_import(branch, fingerprint(spec.model))


def import_adapter(
    adapter: ForeignAdapter,
    task: str,
    to: Head | RunSpec,
    options: Options,
    stream: str | None = None,
    listeners: list[Listener] | None = None,
) -> Appended:
    """Take an adapter in as the stage of `task`: after the last one of a run, or as the first of a new one, whose settings
    are `to` and whose only task it is. What the method takes of the task's data (a router's sums) it takes.

    `stream` as in `append`. Raises SpecError as `take_in` and `append`.
    """
    if isinstance(to, Head):
        return append(to, task, options, stream, listeners, take_in(adapter, to.spec, to.store))
    if to.tasks != [task]:
        raise SpecError(
            f"task {shown(task)}: a new run takes it alone, not {', '.join(to.tasks)}; next step: take in the "
            f"others after it"
        )
    spec = to.model_copy(update={"imported": {task: take_in(adapter, to, options.open_store())}})
    job = make_job(spec, options.place())
    matrix = run_job(job, options, listeners).matrix
    records = {one.name: one.record for one in job.tasks}
    keys = tuple(stage.key for stage in job.plan.stages)
    return Appended(Head(task, spec, keys, job.store, records), {}, matrix.seen(1))


def _require_plain(config: Json, path: Path) -> None:
    """Raises SpecError for what is more than a sum W x + s B A x, with the field that says so."""
    said = {name: config[name] for name in ONLY_PLAIN if config.get(name)}
    if config.get("peft_type") != "LORA":
        said["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        said["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in UNCHANGED:
        said["init_lora_weights"] = config["init_lora_weights"]
    if said:
        raise SpecError(
            f"{path}: {', '.join(f'{name} = {shown(value)}' for name, value in said.items())}; allowed: plain LoRA, with or "
            "without rsLoRA; next step: convert it, or merge it into the base model and train on that"
        )


def _require_base(adapter: Path, base: str, model: ModelSpec) -> None:
    """Raises SpecError unless the named base model is the run's: by its name on the hub, or by what its folder holds."""
    if base and base in (model.name, base_place(model)):
        return
    here = Path(base).expanduser()
    if base and here.is_dir() and fingerprint(ModelSpec(name=str(here))) == fingerprint(model):
        return
    named = f"names the base model {shown(base)}" if base else "names no base model"
    raise SpecError(
        f"{adapter}: {named}, the run has {model.name}; next step: give the run that model, or say --same-base if it is the "
        "same one in another place"
    )
