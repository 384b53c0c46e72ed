"""Small stage parts, and helpers that damage a store on disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from raycl.state.manifest import Manifest, Provenance, content_digest
from raycl.state.records import FileRecord
from raycl.state.sealed import seal
from raycl.state.stage_state import Branch, StagePart
from raycl.state.store import Store

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def make_part(seed: int = 0, d_in: int = 6, d_out: int = 5, rank: int = 2) -> StagePart:
    """A part with a branch on two modules, tensors of several types, and facts; equal seeds give equal parts."""
    random = torch.Generator().manual_seed(seed)
    return StagePart(
        task=f"task-{seed}",
        branch=Branch(
            rank=rank,
            alpha=3.0,
            a={path: torch.randn(rank, d_in, generator=random) for path in MODULES},
            b={path: torch.randn(d_out, rank, generator=random) for path in MODULES},
        ),
        tensors={
            "gate.weight": torch.randn(3, 4, generator=random),
            "gate.half": torch.randn(4, generator=random).bfloat16(),
            "count": torch.tensor(7),
            "mask": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
        },
        facts={"kept": [1, 2.5, None], "name": "é"},
    )


def make_recipe(index: int, parent: str | None) -> dict[str, Any]:
    """The recipe of stage `index` of a chain."""
    return {"schema": 1, "stage": index, "parent": parent, "lr": 5e-4}


def make_provenance(stage: int = 1, parent: str | None = None, **fields: Any) -> Provenance:
    """The provenance of stage `stage` of a chain."""
    plain = {"environment": {"python": "3"}, "runtime": {"seconds": 1.5}}
    return Provenance(make_recipe(stage, parent), stage, parent, **plain | fields)


def publish(store: Store, stage: int = 1, parent: str | None = None, part: StagePart | None = None) -> Manifest:
    """Publish a small part as one stage."""
    provenance = make_provenance(stage, parent, log=({"event": "step", "loss": 0.5},))
    return store.publish(make_part(stage) if part is None else part, provenance)


def publish_chain(store: Store, stages: int) -> list[str]:
    """Publish a chain of small parts; its keys, first to last."""
    keys: list[str] = []
    for stage in range(1, stages + 1):
        keys.append(publish(store, stage, keys[-1] if keys else None).key)
    return keys


def snapshot(root: Path) -> dict[str, bytes | str]:
    """All files below a folder: their bytes, or a link's target."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def rewrite_manifest(store: Store, key: str, fields: dict[str, Any]) -> None:
    """Change fields of a manifest and seal it again, as somebody with a text editor and raycl's source could."""
    path = stage_folder(store, key) / "manifest.json"
    record = json.loads(path.read_text())
    del record["seal"]
    path.write_bytes(seal(record | fields))


def forge_content(store: Store, key: str, name: str, data: bytes) -> Path:
    """Replace a content file and make every hash in the manifest agree with it; the file's path."""
    manifest = store.manifest(key)
    files = {**manifest.files, name: FileRecord.of(data)}
    digest = content_digest(manifest.task, manifest.facts, files)
    folder = stage_folder(store, key)
    (folder / manifest.folder).rename(folder / digest[:16])
    path = folder / digest[:16] / name
    path.write_bytes(data)
    records = {name: record.model_dump() for name, record in files.items()}
    rewrite_manifest(store, key, {"files": records, "digest": digest, "folder": digest[:16]})
    return path


def stage_folder(store: Store, key: str) -> Path:
    """The local folder of a stage, manifest included."""
    return Path(store.uri) / "stages" / key[:2] / key


def sha256(data: bytes) -> str:
    """The hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def same_part(left: StagePart, right: StagePart) -> bool:
    """Whether two parts are equal bit for bit, whatever the order of their names."""

    def flat(part: StagePart) -> dict[str, torch.Tensor]:
        branch = part.branch
        pairs = {} if branch is None else {**_named("a", branch.a), **_named("b", branch.b)}
        return {**_named("t", part.tensors), **pairs}

    def scale(part: StagePart) -> tuple[int, float] | None:
        return None if part.branch is None else (part.branch.rank, part.branch.alpha)

    first, second = flat(left), flat(right)
    return (
        (left.task, left.facts, scale(left)) == (right.task, right.facts, scale(right))
        and first.keys() == second.keys()
        and all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    )


def _named(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
