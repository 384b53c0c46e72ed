"""What is known of a finished state and of its export, for the page that goes with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from raycl import __version__
from raycl.errors import UserError
from raycl.files import Json, write_text
from raycl.methods.registry import method_class, short_name
from raycl.models.load import LoadedModel, base_place
from raycl.models.places import PACKAGED, PACKAGED_ORIGIN, locate
from raycl.report.model_cards import ModelCard, loading_code, model_card
from raycl.sections import ModelSpec
from raycl.use.forms import GATED_INPUTS, served_as
from raycl.use.heads import Head
from raycl.use.prompts import TaskPrompts
from raycl.use.stages import scores_of

if TYPE_CHECKING:
    from raycl.use.export import Exported

CARD = "README.md"
EXACT = (
    "Yes: in fp32 it is the function that was scored. raycl's tests compare logits without raycl, within 1e-5 of the "
    "largest, for every method that is exported so."
)
PROMPTS = (
    "Yes, one input at a time or padded on the right: in fp32 it is the function that was scored. PEFT puts its prompt in "
    "front of padding on the left, where raycl keeps them together, so batches that are padded there answer otherwise."
)


def write_card(head: Head, done: Exported, loaded: LoadedModel, task: str | None) -> None:
    """Write the page into the folder of an export; `task` as in `export`."""
    spec = head.spec
    routes = served_as(head) == "each"
    program = ("routed" if routes else "tasks") if done.form == "routed" else done.form
    base = base_place(spec.model)
    base_name, on_hub = _base_names(spec.model)
    card = ModelCard(
        title=f"{base_name.rpartition('/')[2]} after {', '.join(spec.tasks)}",
        version=__version__,
        form=done.form,
        what=_what(head, done, task),
        exactness=_exactness(head, done),
        losses=done.losses,
        logits_change=done.logits_change,
        code=loading_code(program, base, task or spec.tasks[0], _prompt(head, task), loaded.backbone.encoder_decoder),
        vllm=_vllm(done),
        base=base_name,
        hub_base=on_hub,
        revision=spec.model.revision,
        fingerprint=loaded.fingerprint,
        tags=() if done.rank is None or done.form == "model" else ("lora",),
        stages=[
            {"task": one.task, "key": one.key, "train": one.recipe["task"]["train"], "created": one.created}
            for one in head.manifests
        ],
        data=_data(head),
        scores=scores_of(head),
        method=short_name(spec.method.name),
        about=method_class(spec.method.name).about,
        settings=json.dumps(
            {"method": spec.method.model_dump(mode="json"), "train": spec.train.model_dump(mode="json")}, indent=2
        ),
    )
    write_text(done.folder / CARD, model_card(card))


def _prompt(head: Head, task: str | None) -> str:
    """A prompt to begin with: of a task, if its stream is at hand."""
    try:
        return TaskPrompts(head).of_task(task or head.spec.tasks[0], "...").prompt
    except UserError:
        return "..."


def _what(head: Head, done: Exported, task: str | None) -> str:
    prompts = served_as(head) == "prompt"
    thing = "a PEFT soft prompt" if prompts else "a PEFT LoRA adapter"
    if done.form == "model":
        return "This folder is the whole model" + (f", for inputs of {task}." if head.needs_task else ".")
    if done.form == "adapter":
        return f"This folder is {thing}" + (f", for inputs of {task}." if task else ".")
    chosen = (
        "`route.py` says which of them answers an input (numbers in `router.safetensors`)."
        if served_as(head) == "each"
        else "Whoever asks says whose inputs come."
    )
    shared = (
        " Tasks of one family share their adapter." if getattr(head.spec.method, "families", "off") != "off" else ""
    )
    return f"`adapters/` holds {thing} for each task: {', '.join(done.adapters)}. {chosen}{shared}"


def _exactness(head: Head, done: Exported) -> str:
    quantization = head.spec.model.quantization
    if quantization == "none":
        return _function(head, done)
    return f"{_function(head, done)} The base model was loaded in {quantization}: load it so."


def _function(head: Head, done: Exported) -> str:
    if done.exact:
        if done.form == "routed" and served_as(head) == "each":
            return EXACT + " `route.py` sends all inputs that were scored where they went then."
        return PROMPTS if served_as(head) == "prompt" else EXACT
    ways = []
    if done.change.approximate:
        ways.append(
            "the method weighs its branches anew for each input; here each has the mean of its weights, layer by layer, "
            f"over training inputs, at most {GATED_INPUTS} of a task, of "
            + ("the task." if len(done.losses) == 1 else "all tasks, which count alike.")
        )
    if done.change.compress is not None:
        ways.append(f"the adapter is cut to rank {done.change.compress} by singular values.")
    if done.change.dtype != "fp32":
        ways.append(f"its numbers are rounded to {done.change.dtype}.")
    return "No: " + " Also, ".join(ways) + (" Measured on the run's test data, in fp32:" if done.losses else "")


def _vllm(done: Exported) -> str | None:
    if done.form == "model" or done.rank is None:
        return None
    if done.max_lora_rank is None:
        return f"takes no adapter of rank {done.rank}; export it with `--compress`."
    return f"`--enable-lora --max-lora-rank {done.max_lora_rank}`."


def _data(head: Head) -> list[Json]:
    found = []
    for name in head.spec.tasks:
        record = head.records.get(name)
        if record:
            used = record.get("used") or {}
            counts = {split: used.get(split, "-") for split in ("train", "test")}
            words = {field: record.get(field) or "-" for field in ("source", "licence")}
            found.append({"task": name, **counts, **words})
    return found


def _base_names(spec: ModelSpec) -> tuple[str, str | None]:
    """The base model in words, and its hub id, if it has one: a path on this machine helps nobody."""
    if spec.name == PACKAGED:
        return "SmolLM2-135M-Instruct as packaged, in 4 bits", PACKAGED_ORIGIN
    folder = locate(spec)
    return (spec.name, spec.name) if folder is None else (folder.name, None)
