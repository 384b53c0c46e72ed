"""A stage part to content files and back. A branch is stored as PEFT stores a LoRA adapter, under PEFT's names."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raycl.errors import StoreError, shown
from raycl.state.keys import canonical_json
from raycl.state.manifest import ADAPTER_CONFIG, ADAPTER_MODEL, TENSORS, ContentName
from raycl.state.sealed import parse_json
from raycl.state.stage_state import Branch, StagePart
from raycl.state.tensor_files import decode_tensors, encode_tensors, require_finite

if TYPE_CHECKING:
    import torch

_LORA_NAME = re.compile(r"base_model\.model\.(?P<path>[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)\.lora_(?P<side>[AB])\.weight")
# With these PEFT would compute something else than W x + (alpha / rank) B A x from the stored pairs.
_CHANGES_MEANING = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias")


def encode_part(part: StagePart, adapter_config: dict[str, Any] | None) -> dict[ContentName, bytes]:
    """The content files of a part by name; equal parts give equal bytes.

    `adapter_config` holds further fields for the branch's PEFT config (base model, task type, ...); rank, alpha and the
    target modules are the branch's own. Raises StoreError for NaN and infinities, ValueError for what has no valid
    form on disk: a branch without pairs, a wrong shape or name, a config that contradicts the branch.
    """
    contents: dict[ContentName, bytes] = {}
    if part.branch is not None:
        config = _peft_config(part.branch, adapter_config or {})
        tensors = _peft_tensors(part.branch)
        contents[ADAPTER_CONFIG] = canonical_json(config)
        contents[ADAPTER_MODEL] = encode_tensors(tensors)
        require_finite(tensors, f"branch of task {part.task!r}")
        try:
            _branch_of(config, tensors, f"branch of task {part.task!r}")
        except StoreError as error:
            raise ValueError(str(error)) from None
    elif adapter_config is not None:
        raise ValueError(f"part of task {part.task!r} has an adapter config but no branch")
    if part.tensors:
        contents[TENSORS] = encode_tensors(part.tensors)
        require_finite(part.tensors, f"part of task {part.task!r}")
    return contents


def decode_part(task: str, facts: dict[str, Any], contents: Mapping[ContentName, bytes], where: str) -> StagePart:
    """The part in content files, tensors on the CPU, names sorted; `where` is the content folder, for messages.

    Raises StoreError naming the file: not safetensors or JSON, a missing or unpaired LoRA matrix, a wrong shape,
    a NaN or an infinity.
    """
    branch = None
    if ADAPTER_MODEL in contents:
        config = parse_json(contents[ADAPTER_CONFIG], f"{where}/{ADAPTER_CONFIG}")
        pairs = decode_tensors(contents[ADAPTER_MODEL], f"{where}/{ADAPTER_MODEL}")
        require_finite(pairs, f"{where}/{ADAPTER_MODEL}")
        branch = _branch_of(config, pairs, where)
    tensors = {}
    if TENSORS in contents:
        tensors = decode_tensors(contents[TENSORS], f"{where}/{TENSORS}")
        require_finite(tensors, f"{where}/{TENSORS}")
    return StagePart(task=task, branch=branch, tensors=tensors, facts=facts)


def _peft_config(branch: Branch, extra: dict[str, Any]) -> dict[str, Any]:
    own = {
        "peft_type": "LORA",
        "r": branch.rank,
        # PEFT and the servers that read its format declare alpha as an int.
        "lora_alpha": int(branch.alpha) if float(branch.alpha).is_integer() else branch.alpha,
    }
    plain = {name: _plain(value) for name, value in extra.items()}
    for name, value in own.items():
        if name in plain and plain[name] != value:
            raise ValueError(f"adapter config has {name} = {plain[name]!r}, the branch has {value!r}")
    for name in _CHANGES_MEANING:
        if plain.get(name):
            raise ValueError(f"adapter config has {name} = {plain[name]!r}: a branch is a plain (alpha / rank) B A")
    # PEFT's other initialisations (PiSSA, OLoRA, ...) would change the base weights of a model that loads the branch.
    fixed = {"target_modules": sorted(branch.a), "init_lora_weights": True, "inference_mode": True}
    return {"bias": "none", **plain, **own, **fixed}


def _plain(value: Any) -> Any:
    """PEFT's config objects hold sets and enums; on disk PEFT writes lists and values."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def _peft_tensors(branch: Branch) -> dict[str, torch.Tensor]:
    tensors = {}
    for side, pairs in (("A", branch.a), ("B", branch.b)):
        for path, tensor in pairs.items():
            tensors[f"base_model.model.{path}.lora_{side}.weight"] = tensor
    return tensors


def _branch_of(config: Any, tensors: dict[str, torch.Tensor], where: str) -> Branch:
    rank, alpha = _rank_and_alpha(config, f"{where}/{ADAPTER_CONFIG}")
    file = f"{where}/{ADAPTER_MODEL}"
    sides: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = _LORA_NAME.fullmatch(name)
        if match is None:
            raise StoreError(
                f"{file}: tensor {shown(name)} does not belong to a branch: names are base_model.model.<path>.lora_A.weight "
                "and lora_B.weight"
            )
        sides[match["side"]][match["path"]] = tensor
    if not sides["A"] or sides["A"].keys() != sides["B"].keys():
        unpaired = sorted(sides["A"].keys() ^ sides["B"].keys())
        raise StoreError(f"{file}: every module needs lora_A and lora_B; unpaired: {unpaired or 'no module at all'}")
    for path, a in sides["A"].items():
        b = sides["B"][path]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise StoreError(
                f"{file}: module {path} has A {tuple(a.shape)} and B {tuple(b.shape)}; expected ({rank}, d_in) and "
                f"(d_out, {rank}), since r = {rank} in {ADAPTER_CONFIG}"
            )
    return Branch(rank=rank, alpha=alpha, a=sides["A"], b=sides["B"])


def _rank_and_alpha(config: Any, file: str) -> tuple[int, float]:
    rank, alpha = (config.get("r"), config.get("lora_alpha")) if isinstance(config, dict) else (None, None)
    if type(rank) is not int or rank < 1:
        raise StoreError(f"{file}: r is {shown(rank)}, expected a positive integer")
    if type(alpha) is bool or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise StoreError(f"{file}: lora_alpha is {shown(alpha)}, expected a finite number")
    return rank, float(alpha)
