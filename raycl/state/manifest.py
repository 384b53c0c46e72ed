"""The manifest of a stage: what it was made from, what it consists of, and how it went."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from raycl.events import StageEnd, Step, from_json
from raycl.files import Json, finite
from raycl.state.keys import canonical_json, content_key
from raycl.state.records import FileRecord, Hex64, Record
from raycl.state.stage_state import StagePart

ADAPTER_CONFIG: Final = "adapter/adapter_config.json"
ADAPTER_MODEL: Final = "adapter/adapter_model.safetensors"
TENSORS: Final = "tensors.safetensors"
ContentName = Literal["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "tensors.safetensors"]
"""The only files a stage can consist of: a manifest has no way to name a path elsewhere."""


class Manifest(Record):
    """All that is known about one stored stage. Two manifests with the same `digest` describe the same stage part."""

    stage: int = Field(ge=1)
    task: str = Field(min_length=1)
    parent: Hex64 | None
    """The key of the stage before; none for the first."""
    parent_digest: Hex64 | None = None
    """The digest of the stage before when this one was trained on it; none for the first, and in stores of 0.1.0."""
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

    @property
    def steps(self) -> tuple[Step, ...]:
        """The log records of the training, in order."""
        events = (from_json(values) for values in self.log)
        return tuple(event for event in events if isinstance(event, Step))

    @property
    def end(self) -> StageEnd:
        """How the stage ended: the last record of its log. Raises ValueError for a log that has no such end."""
        last = from_json(self.log[-1]) if self.log else None
        if not isinstance(last, StageEnd):
            raise ValueError(f"the manifest of stage {self.key} has no `stage_end` record at the end of its log")
        return last

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


def content_digest(task: str, facts: Json, files: Mapping[ContentName, FileRecord]) -> str:
    """SHA-256 (64 hex digits) over a stage part: the sorted names and hashes of its files, its task and its facts."""
    hashes = sorted([name, record.sha256] for name, record in files.items())
    return hashlib.sha256(canonical_json([hashes, task, facts])).hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where a stage comes from and how it went: what its manifest says beside its content."""

    recipe: Json
    """What determines the result; its content key is the stage's key."""
    stage: int
    """1-based."""
    parent: str | None = None
    """Key of the stage before; none for the first."""
    adapter_config: Json | None = None
    """Further fields of the branch's PEFT config, if there is a branch."""
    environment: Json = field(default_factory=dict)
    runtime: Json = field(default_factory=dict)
    """Workers, device, seconds, ...; observations only."""
    log: Sequence[Json] = ()
    """The events of the training, in their JSON form."""
    parent_digest: str | None = None
    """Digest of the stage before, as it was read."""

    @property
    def key(self) -> str:
        """The stage's key. Raises TypeError or ValueError for a recipe that JSON cannot hold."""
        return content_key(self.recipe)


def describe_stage(part: StagePart, contents: Mapping[ContentName, bytes], provenance: Provenance) -> Manifest:
    """The manifest of a part with these content files, as of now.

    NaN and infinity in `runtime` and `log`, which only observe, become null: they must not cost a trained stage.
    Raises TypeError or ValueError for a field that is wrong or that JSON cannot hold.
    """
    files: dict[ContentName, FileRecord] = {name: FileRecord.of(data) for name, data in contents.items()}
    digest = content_digest(part.task, part.facts, files)
    return Manifest(
        key=provenance.key,
        stage=provenance.stage,
        task=part.task,
        parent=provenance.parent,
        parent_digest=provenance.parent_digest,
        recipe=provenance.recipe,
        digest=digest,
        folder=digest[:16],
        files=files,
        facts=part.facts,
        environment=provenance.environment,
        runtime=finite(provenance.runtime),
        log=finite(provenance.log),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
