"""The manifest of a stage: what it was made from, what it consists of, and how it went."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raycl.state.keys import canonical_json, content_key
from raycl.state.records import FileRecord, Hex64, Json, Record
from raycl.state.stage_state import StagePart

ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_MODEL = "adapter/adapter_model.safetensors"
TENSORS = "tensors.safetensors"
ContentName = Literal["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "tensors.safetensors"]
"""The only files a stage can consist of: a manifest has no way to name a path elsewhere."""


class Manifest(Record):
    """All that is known about one stored stage. Two manifests with the same `digest` describe the same stage part."""

    stage: int = Field(ge=1)
    task: str = Field(min_length=1)
    parent: Hex64 | None
    """The key of the stage before; none for the first."""
    recipe: Json
    """What determines the result: `key` is its content key."""
    digest: Hex64
    """The content digest of files, task and facts. Environment, runtime, log and time do not enter it."""
    folder: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """The name of the content folder beside the manifest: the digest's first 16 digits."""
    files: dict[ContentName, FileRecord]
    facts: Json
    environment: Json
    runtime: Json
    log: list[Json]
    """The `step` and `stage_end` records of the training."""
    created: str
    """UTC, ISO 8601."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if content_key(self.recipe) != self.key:
            raise ValueError(f"the recipe's content key is not the key {self.key}")
        if content_digest(self.task, self.facts, self.files) != self.digest:
            raise ValueError("the digest is not that of files, task and facts")
        if self.folder != self.digest[:16]:
            raise ValueError(f"folder is {self.folder!r}, expected the digest's first 16 digits {self.digest[:16]!r}")
        if (ADAPTER_CONFIG in self.files) != (ADAPTER_MODEL in self.files):
            raise ValueError("files names one half of an adapter: expected its config and its tensors, or neither")
        return self


def content_digest(task: str, facts: Json, files: Mapping[str, FileRecord]) -> str:
    """SHA-256 (64 hex digits) over a stage part: the sorted names and hashes of its files, its task and its facts."""
    hashes = sorted([name, record.sha256] for name, record in files.items())
    return hashlib.sha256(canonical_json([hashes, task, facts])).hexdigest()


def describe_stage(
    part: StagePart,
    contents: Mapping[str, bytes],
    *,
    key: str,
    stage: int,
    parent: str | None,
    recipe: Json,
    environment: Json,
    runtime: Json,
    log: list[Json],
) -> Manifest:
    """The manifest of a part with these content files, as of now.

    NaN and infinity in `runtime` and `log`, which only observe, become null: they must not cost a trained stage.
    Raises TypeError or ValueError for a field that is wrong or that JSON cannot hold.
    """
    files = {name: FileRecord.of(data) for name, data in contents.items()}
    digest = content_digest(part.task, part.facts, files)
    return Manifest(
        key=key,
        stage=stage,
        task=part.task,
        parent=parent,
        recipe=recipe,
        digest=digest,
        folder=digest[:16],
        files=files,
        facts=part.facts,
        environment=environment,
        runtime=_without_nan(runtime),
        log=_without_nan(log),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
