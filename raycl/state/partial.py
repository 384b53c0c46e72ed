"""Mid-stage checkpoints in a store: the newest one of a stage, to be used if it is whole and dropped otherwise."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raycl.errors import StoreError
from raycl.files import Json
from raycl.state.files import Files
from raycl.state.keys import key_folder
from raycl.state.records import FileRecord, Record
from raycl.state.tensor_files import decode_tensors, encode_tensors

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class PartialRecord(Record):
    """The content of partial.json."""

    facts: Json
    tensors: FileRecord


def write_partial(files: Files, key: str, tensors: dict[str, torch.Tensor], facts: Json) -> None:
    """Replace a stage's checkpoint. Stopped anywhere, it leaves the old checkpoint or the new one in force.

    Raises TypeError or ValueError for facts JSON cannot hold, StoreError if the store cannot be written.
    """
    data = encode_tensors(tensors)
    identity = FileRecord.of(data)
    record = PartialRecord(key=key, facts=facts, tensors=identity).to_bytes()
    file = _tensors_file(identity.sha256)
    files.write(f"{_folder(key)}/{file}", data)
    files.write(_record_name(key), record)
    for name in files.names(_folder(key)):
        if name not in (file, "partial.json"):
            files.remove(f"{_folder(key)}/{name}")


def read_partial(files: Files, key: str) -> tuple[dict[str, torch.Tensor], Json] | None:
    """Tensors (on the CPU) and facts of a stage's checkpoint; none, with a warning in the log, if it is damaged."""
    record_name = _record_name(key)
    try:
        if not files.exists(record_name):
            return None
        record = PartialRecord.parse(files.read(record_name), key, files.uri(record_name))
        name = f"{_folder(key)}/{_tensors_file(record.tensors.sha256)}"
        data = record.tensors.require(files.read(name), files.uri(name))
        return decode_tensors(data, files.uri(name)), record.facts
    except StoreError as error:
        logger.warning("mid-stage checkpoint ignored, the stage starts from its beginning: %s", error)
        return None


def drop_partial(files: Files, key: str) -> None:
    """Remove a stage's checkpoint, if there is one."""
    files.remove(_folder(key))


def _folder(key: str) -> str:
    return key_folder("partial", key)


def _record_name(key: str) -> str:
    return f"{_folder(key)}/partial.json"


def _tensors_file(sha256: str) -> str:
    return f"{sha256[:16]}.safetensors"
