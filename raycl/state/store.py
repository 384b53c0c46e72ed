"""The store: stage parts, rows of scores and mid-stage checkpoints by content key, in a folder or behind a URI.

<root>/raycl-store.json
<root>/stages/<key[:2]>/<key>/manifest.json                written last: a stage exists when this file does
<root>/stages/<key[:2]>/<key>/<digest[:16]>/...            adapter/ in PEFT's format, tensors.safetensors
<root>/scores/<key[:2]>/<key>/scores.json                  written last; predictions in a folder of their digest
<root>/partial/<key[:2]>/<key>/partial.json                the newest mid-stage checkpoint
<root>/imported/<key[:2]>/<key>/adapter/                    an adapter trained elsewhere, by its own hash
<root>/leases/<key>.lock                                    who makes the stage right now (local stores)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raycl.errors import StoreError, shown
from raycl.files import Json
from raycl.state import imported, partial, scores
from raycl.state.files import TEMPORARY, Files
from raycl.state.keys import is_key, key_folder
from raycl.state.lease import Lease
from raycl.state.lineage import ON_DRIFT, Drift, drifts
from raycl.state.manifest import ContentName, Manifest, Provenance, describe_stage
from raycl.state.part_files import decode_part, encode_part
from raycl.state.root import MARKER, prepare_root
from raycl.state.stage_state import Branch, StagePart, StageState

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Store:
    """A store of stage states. Many processes may use one store at a time; it can be sent to another process.

    Every method raises StoreError, naming the file and the next step, if a file is missing, damaged or not trusted,
    if the store cannot be reached, or if a key is not 64 hex digits.
    """

    def __init__(self, uri: str) -> None:
        """`uri` is a local folder or any fsspec URI (`memory://...`, `s3://...`). Nothing is read or made yet."""
        self._files = Files(uri)
        self._usable = False

    @property
    def uri(self) -> str:
        """The place of the store, valid in any working directory: an absolute local path, or a URI."""
        return self._files.uri()

    def check_usable(self) -> None:
        """Make or recognise the store and try to write in it. Nothing of anybody else is ever changed.

        Raises StoreError if the root is a file, cannot be written, is a store of another schema version, or is a
        folder that holds something else.
        """
        prepare_root(self._files)
        self._usable = True

    def exists(self) -> bool:
        """Whether there is a store at this place."""
        return self._files.exists(MARKER)

    # Stages

    def has(self, key: str) -> bool:
        """Whether the stage is stored."""
        return self._files.exists(_manifest_name(key))

    def stage_keys(self) -> list[str]:
        """The keys of all stored stages, sorted."""
        return [key for key in self._keys_in("stages") if self.has(key)]

    def manifest(self, key: str) -> Manifest:
        """The manifest of a stage, checked against its seal, its schema and `key`."""
        name = _manifest_name(key)
        if not self.has(key):
            raise StoreError(
                f"stage {key} is not in store {self.uri}: run the sequence that makes it, or give its store"
            )
        return Manifest.parse(self._files.read(name), key, self._files.uri(name))

    def publish(self, part: StagePart, provenance: Provenance) -> Manifest:
        """Store what a stage added; it is stored completely or not at all. Returns the manifest in force.

        A key that is stored already stays as it is: the first of several writers wins.
        NaN and infinity in the provenance's `runtime` and `log`, which only observe, become null. Raises StoreError for such
        a tensor; TypeError or ValueError for what has no valid form on disk.
        """
        contents = encode_part(part, provenance.adapter_config)
        manifest = describe_stage(part, contents, provenance)
        key = manifest.key
        sealed = manifest.to_bytes()
        self._require_usable()
        if not self.has(key):
            self._write_contents(manifest, contents)
            self._load(manifest)
            self._files.create(_manifest_name(key), sealed)
        return self._in_force(manifest)

    def read(self, key: str) -> StagePart:
        """The part of one stage, tensors on the CPU and names sorted, every file checked by size and hash."""
        return self._load(self.manifest(key))

    def read_state(self, key: str, last_only: bool = False) -> StageState:
        """The state after a stage: the parts from the first stage to this one.

        With `last_only`, the earlier parts' tensors are not read; their facts are there. A stage that stands on another
        parent than it was trained on is a warning.
        """
        chain = self._chain(key)
        for drift in drifts(chain):
            logger.warning("%s", drift.words)
        *earlier, last = chain
        parts = (StagePart(m.task, facts=m.facts) if last_only else self._load(m) for m in earlier)
        return StageState((*parts, self._load(last)))

    def lineage(self, key: str) -> list[str]:
        """The keys from the first stage of a chain to this one."""
        return [manifest.key for manifest in self._chain(key)]

    def drift(self, key: str) -> Drift | None:
        """Says so if a stored stage's parent is stored and is not what the stage was trained on any more."""
        child = self.manifest(key)
        if child.parent is None or not self.has(child.parent):
            return None
        return next(iter(drifts([self.manifest(child.parent), child])), None)

    def folder(self, key: str) -> str:
        """The absolute path or URI of a stage's content; PEFT loads `adapter/` in it if the store is local."""
        return self._files.uri(_content_folder(self.manifest(key)))

    # Adapters from elsewhere

    def write_import(self, branch: Branch, base: str) -> str:
        """Store a branch that was trained elsewhere on the base model with the fingerprint `base`; returns their hash."""
        self._require_usable()
        return imported.write_import(self._files, branch, base)

    def read_import(self, key: str) -> tuple[Branch, str]:
        """The branch with this hash and the fingerprint of its base model, checked by it."""
        return imported.read_import(self._files, key)

    # Rows of scores

    def entries(self) -> list[tuple[str, str]]:
        """Every stage and every row of scores that is there: (stages or scores, key)."""
        rows = [key for key in self._keys_in("scores") if self.has_scores(key)]
        return [*(("stages", key) for key in self.stage_keys()), *(("scores", key) for key in rows)]

    def has_scores(self, key: str) -> bool:
        """Whether the row of scores is stored."""
        return scores.has_scores(self._files, key)

    def write_scores(self, key: str, record: Json, predictions: list[Json]) -> None:
        """Store a row: its record and the predictions it came from. A row that is stored already stays as it is."""
        self._require_usable()
        scores.write_scores(self._files, key, record, predictions)

    def read_scores(self, key: str) -> Json:
        """The record of a row."""
        return scores.read_scores(self._files, key)

    def read_predictions(self, key: str) -> list[Json]:
        """The predictions of a row, checked by size and hash."""
        return scores.read_predictions(self._files, key)

    def lease(self, key: str) -> Lease:
        """The right to make a stage; see `Lease`."""
        self._require_usable()
        return Lease.of(self._files, key)

    # Mid-stage checkpoints

    def write_partial(self, key: str, tensors: dict[str, torch.Tensor], facts: Json) -> None:
        """Replace the mid-stage checkpoint of a stage; at any moment the old one or the new one is in force."""
        self._require_usable()
        partial.write_partial(self._files, key, tensors, facts)

    def read_partial(self, key: str) -> tuple[dict[str, torch.Tensor], Json] | None:
        """Tensors (on the CPU) and facts of a stage's checkpoint; none if absent or, with a warning, if damaged."""
        return partial.read_partial(self._files, key)

    def drop_partial(self, key: str) -> None:
        """Remove the mid-stage checkpoint of a stage, if there is one."""
        partial.drop_partial(self._files, key)

    # Health

    def verify(self) -> list[str]:
        """Read every stage and every row of scores; one line for each that cannot be trusted, none if all is well."""
        problems = []
        for key in self._keys_in("stages"):
            problems += self._problem(key, self.has, self._read_whole)
        for key in self._keys_in("scores"):
            problems += self._problem(key, self.has_scores, self.read_predictions)
        return problems

    def _problem(self, key: str, present: Callable[[str], bool], read: Callable[[str], object]) -> list[str]:
        try:
            # A folder without its last file is what a stopped writer leaves: no stage, and no problem.
            if present(key):
                read(key)
        except StoreError as error:
            return [str(error)]
        return []

    def _read_whole(self, key: str) -> None:
        """A stage with all that it stands on, and nothing beside its files: PEFT might load what lies in its folder."""
        self.read(key)
        chain = self._chain(key)
        if found := drifts(chain[-2:]):
            raise StoreError(f"{found[0].words}; {ON_DRIFT}")
        manifest = chain[-1]
        folder = _content_folder(manifest)
        there = (name for name in self._files.sizes(folder) if TEMPORARY not in name)  # which a stopped writer leaves
        if extra := sorted(set(there) - set(manifest.files)):
            raise StoreError(
                f"{self._files.uri(folder)} holds {shown(extra[0])}, which its manifest does not name: somebody put it "
                "there. Move it away"
            )

    # Steps of the above

    def _require_usable(self) -> None:
        if not self._usable:
            self.check_usable()

    def _write_contents(self, manifest: Manifest, contents: Mapping[ContentName, bytes]) -> None:
        for name, data in sorted(contents.items()):
            self._files.write(f"{_content_folder(manifest)}/{name}", data)

    def _in_force(self, made: Manifest) -> Manifest:
        """The stored manifest of a key; it stays if the stage is made once more, for later stages may stand on it."""
        stored = self.manifest(made.key)
        if stored.digest != made.digest:
            logger.warning(
                "stage %s was made twice with different results (digest %s stored, %s dropped); the stored one stays",
                stored.key,
                stored.digest,
                made.digest,
            )
        return stored

    def _load(self, manifest: Manifest) -> StagePart:
        folder = _content_folder(manifest)
        contents = {}
        for name, record in manifest.files.items():
            path = f"{folder}/{name}"
            contents[name] = record.require(self._files.read(path), self._files.uri(path))
        return decode_part(manifest.task, manifest.facts, contents, self._files.uri(folder))

    def _chain(self, key: str) -> list[Manifest]:
        chain = [self.manifest(key)]
        while (parent := chain[-1].parent) is not None:
            child = chain[-1]
            where = self._files.uri(_manifest_name(child.key))
            if not self.has(parent):
                raise StoreError(
                    f"{where} names the parent {parent}, which is not in the store: run the sequence again"
                )
            chain.append(self.manifest(parent))
            # Stages count up along a chain, so one that does not is no chain, and a circle cannot be.
            if chain[-1].stage >= child.stage:
                raise StoreError(
                    f"{where} is stage {child.stage}, but its parent {parent} is stage {chain[-1].stage}: parents come "
                    "before their children. Delete the folders of both and run again"
                )
        return chain[::-1]

    def _keys_in(self, room: str) -> list[str]:
        """The folders with a key's name: whatever else lies there (a desktop's index files) is not the store's."""
        found = (key for start in self._files.names(room) for key in self._files.names(f"{room}/{start}"))
        return [key for key in found if is_key(key)]


def _stage_folder(key: str) -> str:
    return key_folder("stages", key)


def _manifest_name(key: str) -> str:
    return f"{_stage_folder(key)}/manifest.json"


def _content_folder(manifest: Manifest) -> str:
    return f"{_stage_folder(manifest.key)}/{manifest.folder}"
