"""A small task of one's own, in the forms that people keep their tables in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

TEAMS = ("billing", "support", "sales")
ROWS = [
    {"Ticket Text": f'ticket {i}, which says "help"\nand more', "Team": TEAMS[i % 3], "Reply": f"We look at {i}"}
    for i in range(30)
]
TEAM: dict[str, Any] = {
    "name": "team",
    "instruction": "Which team?",
    "input": "Ticket Text",
    "answer": "Team",
    "labels": list(TEAMS),
    "split": {"test": 0.3, "seed": 7},
}
"""A task over these rows, but for its data."""


def write_csv(path: Path, rows: list[dict[str, Any]] = ROWS, delimiter: str = ",") -> None:
    """Rows with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """The same with tabs."""
    write_csv(path, rows, "\t")


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """A line each, with a byte order mark and Windows' line ends."""
    path.write_bytes(("\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)).encode())


def write_json(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """An object with one list."""
    path.write_text(json.dumps({"version": "1", "data": rows}))


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """Apache Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """Arrow's stream form."""
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_feather(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """Arrow's file form."""
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], None]] = {
    "t.csv": write_csv,
    "t.tsv": write_tsv,
    "t.jsonl": write_jsonl,
    "t.json": write_json,
    "t.parquet": write_parquet,
    "t.arrow": write_arrow,
    "t.feather": write_feather,
}
"""File name -> what writes `ROWS` into it."""


def write_stream(folder: Path, *tasks: dict[str, Any], **fields: Any) -> str:
    """A stream file of these tasks; its path."""
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump({"stream": "support", "tasks": list(tasks), **fields}, sort_keys=False))
    return str(path)
