"""A finished state as files that PEFT or transformers load without raycl: one adapter, or a whole model.

A sum of branches is one adapter: A_1 to A_T stand on each other, (r_1 + ... + r_T, d_in), and s_1 B_1 to s_T B_T stand side
by side, (d_out, r_1 + ... + r_T), with alpha = rank, so that B A is the sum of s_i B_i A_i. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raycl.adapters.branches import adapter_config
from raycl.adapters.carriers import stored_transposed
from raycl.errors import SpecError
from raycl.files import write_whole
from raycl.methods.registry import method_class
from raycl.models.load import base_place, load_model
from raycl.sequence.states import States
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL
from raycl.state.part_files import encode_part
from raycl.state.stage_state import Branch, StagePart
from raycl.use.heads import Head

Form = Literal["adapter", "model"]
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's `--max-lora-rank` takes."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    form: Form
    files: tuple[Path, ...]
    rank: int
    """Of the adapter, or of what was merged."""
    max_lora_rank: int | None
    """What vLLM must be given to take the adapter; none where it takes none of this rank."""


def export(head: Head, folder: Path, form: Form = "adapter", task: str | None = None) -> Exported:
    """Write a state into `folder`, which must be new or empty; `task` as in `Head.keys`.

    `adapter` is a PEFT adapter, `model` the base model with the adapter merged in, in fp32 safetensors with its tokenizer.
    Raises SpecError for a method whose served function is neither, and for a folder with something in it.
    """
    branch = served_branch(head, task)
    if folder.exists() and any(folder.iterdir()):
        raise SpecError(f"--to {folder}: is not empty; next step: give a new folder")
    loaded = load_model(head.spec.model.model_copy(update={"precision": "fp32"}), "cpu")
    if loaded.fingerprint != head.model_fingerprint:
        raise SpecError(f"model.name: {loaded.name} is not the model that {head.name} was trained on")
    folder.mkdir(parents=True, exist_ok=True)
    rank = next((one for one in VLLM_RANKS if one >= branch.rank), None)
    if form == "adapter":
        config = adapter_config(loaded.backbone, branch, base_place(head.spec.model))
        contents = encode_part(StagePart("export", branch), config)
        for name in (ADAPTER_CONFIG, ADAPTER_MODEL):
            _write(folder / Path(name).name, contents[name])
    else:
        merge_into(loaded.backbone.model, branch)
        model: Any = loaded.backbone.model
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return Exported(folder, form, tuple(sorted(folder.iterdir())), branch.rank, rank)


def served_branch(head: Head, task: str | None = None) -> Branch:
    """The one branch that a state's served function is. Raises SpecError where it is none."""
    said = method_class(head.spec.method.name).in_peft(head.spec.method)
    if said == "none":
        raise SpecError(
            f"method {head.spec.method.name}: what {head.name} serves is no single LoRA adapter, so an export would be "
            "another model; allowed: methods that train one branch or sum them; next step: use it with `raycl generate`"
        )
    state = States(head.store, head.spec).of(head.keys(task))
    return state.newest.pair if said == "last" else added(state.branches)


def added(branches: Sequence[Branch]) -> Branch:
    """The sum of branches as one; the equation stands at the top of this file."""
    if len(branches) == 1:
        return branches[0]
    a = {path: torch.cat([branch.a[path] for branch in branches]) for path in branches[0].a}
    b = {path: torch.cat([branch.b[path] * (branch.alpha / branch.rank) for branch in branches], dim=1) for path in a}
    rank = sum(branch.rank for branch in branches)
    return Branch(rank, float(rank), a, b)


@torch.no_grad()
def merge_into(model: Any, branch: Branch) -> None:
    """W + (alpha / rank) B A in the place of W, in fp32, for every module of the branch."""
    for path, down in branch.a.items():
        module = model.get_submodule(path)
        update = (branch.alpha / branch.rank) * (branch.b[path].double() @ down.double())
        weight = module.weight
        weight.copy_((weight.double() + (update.T if stored_transposed(module) else update)).to(weight.dtype))


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(content))
