"""Rows of scores in a store: one record and the predictions it was computed from, under their own key."""

from __future__ import annotations

from raycl.files import Json
from raycl.state.files import Files
from raycl.state.keys import canonical_json, key_folder
from raycl.state.records import FileRecord, Record
from raycl.state.sealed import parse_json


class ScoresRow(Record):
    """The content of scores.json."""

    record: Json
    predictions: FileRecord


def has_scores(files: Files, key: str) -> bool:
    """Whether the row is complete."""
    return files.exists(_record_name(key))


def write_scores(files: Files, key: str, record: Json, predictions: list[Json]) -> None:
    """Write the predictions, one canonical JSON object a line, then the record; a row that is there stays as it is.

    Raises TypeError or ValueError for what JSON cannot hold, StoreError if the store cannot be written.
    """
    lines = b"".join(canonical_json(row) + b"\n" for row in predictions)
    identity = FileRecord.of(lines)
    row = ScoresRow(key=key, record=record, predictions=identity).to_bytes()
    if has_scores(files, key):
        return
    # In a folder named by its content, so that two writers of one row never mix their files.
    files.write(_predictions_name(key, identity.sha256), lines)
    files.create(_record_name(key), row)


def read_scores(files: Files, key: str) -> Json:
    """The record of a row. Raises StoreError naming the file if it is missing or damaged."""
    return _row(files, key).record


def read_predictions(files: Files, key: str) -> list[Json]:
    """The predictions of a row, verified. Raises StoreError naming the file if they are missing or damaged."""
    identity = _row(files, key).predictions
    name = _predictions_name(key, identity.sha256)
    data = identity.require(files.read(name), files.uri(name))
    return [parse_json(line, files.uri(name)) for line in data.splitlines()]


def _row(files: Files, key: str) -> ScoresRow:
    return ScoresRow.parse(files.read(_record_name(key)), key, files.uri(_record_name(key)))


def _row_folder(key: str) -> str:
    return key_folder("scores", key)


def _record_name(key: str) -> str:
    return f"{_row_folder(key)}/scores.json"


def _predictions_name(key: str, sha256: str) -> str:
    return f"{_row_folder(key)}/{sha256[:16]}/predictions.jsonl"
